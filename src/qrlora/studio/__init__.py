"""The studio: training and mixing adapters on pages in a browser, over files that outlive pages and server."""
