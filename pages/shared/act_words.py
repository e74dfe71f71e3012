"""What people did, in words: what an act does, and how and why it came about. As plain text: callers escape it."""

from metamoe_backend.store.acts import Act
from metamoe_backend.store.events import CLUSTER_ACTS
from pages.shared.i18n import _, ngettext


def act_text(act: Act) -> str:
    """What an act does, in a few words: 412 labels 'algebra'."""
    if act.kind == "undo":
        return _undo_text(act)
    if act.kind in ("label", "unlabel", "suggestions_accepted", "suggestions_rejected", "labels_restored"):
        return _labels_text(act)
    if act.kind.startswith("skill_"):
        return _skill_text(act)
    if act.kind in CLUSTER_ACTS:
        return _cluster_text(act)
    said = act.values
    if act.kind == "plan_saved":
        return _("plan '{plan}'").format(plan=said["plan"])
    if act.kind == "review":
        return _review_text(act)
    if act.kind == "constraint":
        same = said["relation"] == "same"
        text = (
            _("same skill for both sides, {n} questions")
            if same
            else _("different skills for two sides, {n} questions")
        )
        return text.format(n=f"{act.n:,}")
    if act.kind == "meta_question_edited":
        return _("meta-question '{text}'").format(text=said["text"])
    return act.kind.replace("_", " ")


def reason_text(act: Act) -> str:
    """How an act came about, and the reason its author gave; empty where there is nothing to say."""
    ways = {
        "question": _("one question on the card"),
        "lasso": _("questions selected together"),
        "cluster": _("a whole cluster"),
        "file": _("from a file"),
        "accepted": _("suggestion accepted"),
        "decided": _("disagreement decided"),
    }
    how = "accepted" if act.kind == "suggestions_accepted" else act.values.get("how", "")
    parts = [ways.get(how, ""), act.values.get("why", ""), act.values.get("comment", "")]
    return ": ".join(part for part in parts if part)


def _undo_text(act: Act) -> str:
    if act.of is None:
        return _("an act taken back")
    if act.of.kind == "undo":
        return _("done again: {act}").format(act=act_text(act.of.of) if act.of.of else "")
    return _("taken back: {act}").format(act=act_text(act.of))


def _labels_text(act: Act) -> str:
    n, skill = f"{act.n:,}", act.values.get("skill")
    if skill and act.kind in ("label", "suggestions_accepted"):
        text = ngettext("{n} label '{skill}'", "{n} labels '{skill}'", act.n)
        return text.format(n=n, skill=skill)
    if act.kind == "suggestions_accepted":
        return ngettext("{n} accepted suggestion", "{n} accepted suggestions", act.n).format(n=n)
    if act.kind == "unlabel":
        return ngettext("taking back {n} label", "taking back {n} labels", act.n).format(n=n)
    if act.kind == "labels_restored":
        text = ngettext("labelling '{name}' back, {n} label", "labelling '{name}' back, {n} labels", act.n)
        return text.format(name=act.values["labelling"], n=n)
    if skill:
        text = ngettext("{n} refusal of '{skill}'", "{n} refusals of '{skill}'", act.n)
        return text.format(n=n, skill=skill)
    return ngettext("{n} refused suggestion", "{n} refused suggestions", act.n).format(n=n)


def _skill_text(act: Act) -> str:
    said = act.values
    skill = said.get("skill", "")
    if act.kind == "skill_created":
        return _("skill '{name}'").format(name=said["name"])
    if act.kind == "skill_renamed":
        return _("renaming '{before}' to '{name}'").format(before=said["before"], name=said["name"])
    if act.kind == "skill_merged":
        return _("merging '{skill}' into '{into}'").format(skill=skill, into=said["into"])
    if act.kind == "skill_split":
        text = ngettext("splitting {n} question off '{skill}' as '{name}'", "splitting {n} questions off '{skill}' as '{name}'", act.n)  # fmt: skip
        return text.format(n=f"{act.n:,}", skill=said["from"], name=said["name"])
    return _("recolouring '{skill}'").format(skill=skill)


def _cluster_text(act: Act) -> str:
    said, n = act.values, f"{act.n:,}"
    if act.kind == "cluster_renamed":
        return _("calling cluster {before} '{name}'").format(before=said["before"], name=said["name"])
    if act.kind == "clusters_merged":
        return _("merging cluster {clusters} into {into}").format(clusters=said["from"], into=said["into"])
    if act.kind == "cluster_split":
        return _("splitting cluster {cluster}").format(cluster=said["from"])
    if act.kind == "noise_absorbed":
        return ngettext("{n} question of the noise into its cluster", "{n} questions of the noise into their clusters", act.n).format(n=n)  # fmt: skip
    text = ngettext("{n} question into cluster {into}", "{n} questions into cluster {into}", act.n)
    return text.format(n=n, into=said["into"])


def _review_text(act: Act) -> str:
    verdicts = {"approve": _("approval"), "question": _("doubt"), "reject": _("rejection")}
    kinds = {"run": _("run {name}"), "expert": _("expert {name}"), "chart": _("chart {name}")}
    said = act.values
    target = kinds.get(said["target_kind"], "{name}").format(name=said["target"])
    return _("{verdict} of {target}").format(verdict=verdicts.get(said.get("verdict", ""), _("comment")), target=target)
