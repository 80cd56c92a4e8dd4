"""activestore: an active object store for the edge-to-cloud continuum."""
