"""`python -m pages [OPTIONS OF STREAMLIT]`: the dashboard, as `streamlit run app.py` but right from the first visitor on.

Until the first `st.navigation` of a process, Streamlit takes a folder named pages/ for its older kind of navigation, and
whoever comes first with a link to a page is told that it does not exist. Here it is told beforehand.
"""

import sys
from pathlib import Path

from streamlit.runtime.pages_manager import PagesManager
from streamlit.web.cli import main

PagesManager.uses_pages_directory = False
sys.argv = ["streamlit", "run", str(Path(__file__).resolve().parent.parent / "app.py"), *sys.argv[1:]]
main()
