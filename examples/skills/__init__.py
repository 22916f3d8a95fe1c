"""The skills of the demo world, one small module each."""

from examples.skills import cron, ffmpeg, git, kubectl, sql
from examples.skills.common import Skill

SKILLS: dict[str, Skill] = {skill.NAME: skill for skill in (cron, ffmpeg, git, kubectl, sql)}
