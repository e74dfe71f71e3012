"""Pure functions from tables to plotly figures. They set what the data needs; fonts and backgrounds are the theme's."""
