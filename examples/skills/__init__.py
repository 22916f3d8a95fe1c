"""The skills of the demo world, one small module each."""

from examples.skills import (
    chmod,
    contact,
    cron,
    css,
    ffmpeg,
    flight,
    git,
    http_status,
    iso_date,
    kubectl,
    regex,
    sql,
    triage,
)
from examples.skills.common import Skill

MODULES: tuple[Skill, ...] = (
    *(chmod, contact, cron, css, ffmpeg, flight, git, http_status),
    *(iso_date, kubectl, regex, sql, triage),
)
SKILLS = {skill.NAME: skill for skill in MODULES}
