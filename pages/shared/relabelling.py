"""What relabelling has changed for experts, mixtures and the runs that made them, in words."""

import pandas as pd

from metamoe_backend.store.connection import Store
from metamoe_backend.store.labellings import fetch_label_changes
from pages.shared.i18n import _, ngettext
from pages.shared.state import per_version


@per_version
def load_label_changes(store: Store) -> pd.DataFrame:
    """Of those that relabelling has changed something for: name, kind, run_id, labelling, gained, lost."""
    changes = fetch_label_changes(store)
    return changes[changes["gained"] + changes["lost"] > 0].reset_index(drop=True)


def since_help() -> str:
    return _("Training questions that its skills gained (+) and lost (−) since the labels it was trained on.")


def describe_changes(changes: pd.DataFrame, by: str) -> dict[str, str]:
    """`by` (name or run_id) to the change: "+5 −3"."""
    return {
        key: f"+{gained:,} −{lost:,}" for key, gained, lost in changes[[by, "gained", "lost"]].itertuples(index=False)
    }


def change_sentence(changes: pd.DataFrame, name: str) -> str | None:
    """What a person should know of an expert that is out of date, and what to do; None for one that is not."""
    found = changes[changes["name"] == name]
    if found.empty:
        return None
    row = found.iloc[0]
    return _(
        "Out of date: since labelling {labelling} its skills gained {gained} training questions and lost {lost}. "
        "Freeze the labels, save a plan on them and train it again."
    ).format(labelling=row["labelling"], gained=f"{row['gained']:,}", lost=f"{row['lost']:,}")


def count_sentence(changes: pd.DataFrame) -> str | None:
    """How many adapters are out of date; None for none."""
    n = int((changes["kind"] != "moe").sum())
    if not n:
        return None
    return ngettext(
        "{n} is out of date: its labels have changed.", "{n} are out of date: their labels have changed.", n
    ).format(n=n)
