"""A study: one comparison of systems on target tasks, from what it compares to the table that comes out.

studies.py     what is asked for: studies/NAME.json
recipe.py      which runs, in which order, with which settings, and what each depends on
progress.py    which of them are done, and how long the others will take
advance.py     starts what can start
table.py       the comparison        document.py  the same as Markdown
"""
