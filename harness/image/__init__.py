"""Images: fetched sources, compiled artifacts, built, inspected, described."""
