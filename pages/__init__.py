"""The pages of the dashboard, one thin file each, numbered in pipeline order. `app.py` registers them."""
