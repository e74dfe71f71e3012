"""What stands wrong with runs, in sight of whoever opens the page; the supervisor tells those who do not."""

from collections.abc import Sequence

import streamlit as st

from metamoe_backend.errors import ConfigError
from metamoe_backend.jobs.alerts import Alert, AlertSettings, find_alerts, read_alert_settings
from metamoe_backend.jobs.run_folder import RunFolder, RunStatus, utc_now
from pages.shared.errors import guarded
from pages.shared.i18n import _
from pages.shared.jobs_run import show_other_run
from pages.shared.layout import plain
from pages.shared.run_words import stage_name
from pages.shared.state import get_workspace

_MOST_SHOWN = 3
ICONS = {
    "loss-nan": ":material/trending_up:",
    "no-progress": ":material/hourglass_disabled:",
    "queue-blocked": ":material/block:",
}


def render_alerts(statuses: Sequence[RunStatus], shown: str | None) -> None:
    """One line an alert, each with a way to its run unless that is the one `shown`."""
    try:
        settings = read_alert_settings(get_workspace())
    except ConfigError as error:
        st.warning(plain(error), icon=":material/edit:")
        settings = AlertSettings()
    alerts = find_alerts(statuses, settings, utc_now())
    for alert in alerts[:_MOST_SHOWN]:
        _render_alert(alert, settings, shown)
    if len(alerts) > _MOST_SHOWN:
        st.caption(_("{n} more alerts").format(n=len(alerts) - _MOST_SHOWN))


def _render_alert(alert: Alert, settings: AlertSettings, shown: str | None) -> None:
    title = f"{stage_name(alert.stage)} · {alert.name}"
    lines = [f"**{plain(title)}**: {plain(alert.sentence)}", *_told_text(alert, settings)]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.warning("  \n".join(lines), icon=ICONS[alert.alert], width="stretch")
        if alert.run_id != shown:
            st.button(
                _("Show"),
                key=f"jobs_alert_{alert.alert}_{alert.run_id}",
                on_click=guarded(show_other_run),
                args=(alert.run_id,),
            )


def _told_text(alert: Alert, settings: AlertSettings) -> list[str]:
    """Whether it was sent elsewhere; nothing where nobody asked for that."""
    if settings.host is None:
        return []
    told = [each for each in RunFolder(get_workspace().runs / alert.run_id).read_told() if each.alert == alert.alert]
    if not told:
        return []
    if told[-1].problem is None:
        return [_("Sent to {host}.").format(host=plain(settings.host))]
    return [_("Could not be sent to {host}: {why}").format(host=plain(settings.host), why=plain(told[-1].problem, 120))]
