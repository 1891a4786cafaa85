"""Pictures of a graph and its runs, as pure functions of plain data: each module knows one format."""
