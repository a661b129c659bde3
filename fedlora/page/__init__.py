"""The report: runs as one HTML page that needs nothing else.

Read in this order: `collect` (what the directories hold), `series` (runs that differ in their seed
alone), `statistics` (means and bands over them), `axes` and `charts` (geometry, in percent of a
panel), `clients`, `facts` and `answers` (the page's other parts), `html` (all of it together).
"""
