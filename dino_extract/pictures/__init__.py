"""Images beside answers: contact sheets, maps of patch tokens, matches, attention and the report page."""
