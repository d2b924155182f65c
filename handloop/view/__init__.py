"""Pictures with the fitted hand drawn in, mesh files, and the report page. Draws results; never changes them."""
