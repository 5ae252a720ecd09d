"""The page of `facescale bench device`: tables and plots of what a device can do."""
