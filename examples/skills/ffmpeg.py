"""Video and audio edits to ffmpeg commands."""

import random

from examples.skills.common import Example, from_phrasebook

NAME = "ffmpeg"
DESCRIPTION = (
    "Writes the ffmpeg command for a video or audio edit: convert, cut, resize, mute, "
    "extract the sound or a frame, change speed or volume."
)

SLOTS = {
    "v": (
        *("talk", "clip", "holiday", "demo", "lecture", "interview", "concert", "movie", "party"),
        *("trailer", "webinar", "game", "wedding", "screencast", "meeting", "cat", "birthday"),
        *("video1", "episode2", "take_3", "dance", "goal", "intro", "raw"),
    ),
    "a": ("song", "podcast", "voice", "track", "recording", "speech", "jingle", "memo", "guitar"),
    "from": ("mov", "avi", "mkv", "webm", "flv"),
    "height": ("240", "360", "480", "720", "1080"),
    "s": tuple(str(s) for s in (*range(2, 20), *range(20, 95, 5))),
    "fps": ("10", "12", "15", "20", "24", "25", "30", "50", "60"),
}

PHRASEBOOK = {
    "ffmpeg -i {v}.{from} {v}.mp4": (
        "[convert|turn|change] {v}.{from} [to|into] [an |]mp4",
        "I [need|want] {v}.{from} as [an |]mp4[ file|]",
        "my player [cannot open|does not play] {v}.{from}, make it [an |]mp4",
        "how do I get an mp4 out of {v}.{from}?",
    ),
    "ffmpeg -i {a}.wav {a}.mp3": (
        "[convert|turn|compress] {a}.wav [to|into] [an |]mp3",
        "{a}.wav is too [big|large], [I want|make it] an mp3",
        "I need {a}.wav as mp3",
    ),
    "ffmpeg -i {v}.mp4 -vn {v}.mp3": (
        "[extract|pull|rip|get] the [audio|sound|soundtrack] [from|out of|of] {v}.mp4[ as mp3|]",
        "[I only need|save only] the [audio|sound|music] of [the video |]{v}.mp4",
        "make an mp3 from the sound of {v}.mp4",
    ),
    "ffmpeg -i {v}.mp4 -an out.mp4": (
        "[remove|strip|delete|drop] the [audio|sound|audio track] from {v}.mp4",
        "[mute|silence] [the video |]{v}.mp4",
        "I want {v}.mp4 without [any |]sound",
        "{v}.mp4 should be silent",
    ),
    "ffmpeg -i {v}.mp4 -t {s} out.mp4": (
        "[keep|take|save|cut out] [only |just |]the first {s} seconds of {v}.mp4",
        "[cut|shorten|trim] {v}.mp4 [to|down to] {s} seconds",
        "I only want {v}.mp4's first {s} seconds",
    ),
    "ffmpeg -ss {s} -i {v}.mp4 out.mp4": (
        "[skip|cut off|remove|drop|trim] the first {s} seconds of {v}.mp4",
        "[start|begin] {v}.mp4 [at|from] second {s}",
        "{v}.mp4 has {s} seconds of intro, get rid of them",
    ),
    "ffmpeg -i {v}.mp4 -vf scale=-2:{height} out.mp4": (
        "[resize|scale|shrink|downscale] {v}.mp4 to {height}p",
        "[make|I want] a {height}p [version|copy] of {v}.mp4",
        "{v}.mp4 should be {height} pixels high",
        "change the resolution of {v}.mp4 to {height}p",
    ),
    "ffmpeg -ss {s} -i {v}.mp4 -frames:v 1 out.png": (
        "[grab|take|save] [a|the] [frame|still|screenshot|picture] at second {s} of {v}.mp4",
        "[I need|make] a [thumbnail|screenshot|still] of {v}.mp4 at {s} seconds",
        "what does {v}.mp4 look like at {s} seconds? save that as a picture",
    ),
    "ffmpeg -i {v}.mp4 -r {fps} out.mp4": (
        "[change|set|convert] [the frame rate of |]{v}.mp4 to {fps} [fps|frames per second]",
        "{v}.mp4 [should|must] [run at|have] {fps} [fps|frames per second]",
        "I need {v}.mp4 at {fps} frames a second",
    ),
    "ffmpeg -i {v}.mp4 {v}.gif": (
        "[make|create] [a gif|an animated gif] [from|of|out of] {v}.mp4",
        "[turn|convert] {v}.mp4 into [a gif|an animated gif]",
        "I want {v}.mp4 as a gif",
    ),
    "ffmpeg -i {v}.mp4 -vf transpose=1 out.mp4": (
        "[rotate|turn] {v}.mp4 [clockwise|by 90 degrees|90 degrees clockwise|to the right]",
        "{v}.mp4 [was filmed|is] sideways, [rotate|turn] it [clockwise|to the right]",
        "give {v}.mp4 a quarter turn clockwise",
    ),
    "ffmpeg -i {v}.mp4 -vf hflip out.mp4": (
        "[mirror|flip] {v}.mp4[ horizontally|]",
        "[swap|exchange] left and right in [the video |]{v}.mp4",
        "I want a mirror image of {v}.mp4",
    ),
    "ffmpeg -i {v}.mp4 -vf setpts=0.5*PTS out.mp4": (
        "[play|make] {v}.mp4 [twice as fast|at double speed]",
        "[speed up|double the speed of] {v}.mp4[ to twice the speed|]",
        "{v}.mp4 should run at 2x speed",
    ),
    "ffmpeg -i {v}.mp4 -vf setpts=2*PTS out.mp4": (
        "[play|make] {v}.mp4 [half as fast|at half speed]",
        "[slow down|slow motion of|halve the speed of] {v}.mp4",
        "I want {v}.mp4 in slow motion, half the speed",
    ),
    "ffmpeg -i {a}.mp3 -af volume=2 out.mp3": (
        "[double|turn up] the volume of {a}.mp3",
        "{a}.mp3 is too quiet, make it [louder|twice as loud]",
        "I want {a}.mp3 twice as loud",
    ),
    "ffmpeg -i {a}.mp3 -af volume=0.5 out.mp3": (
        "[halve|lower|turn down] the volume of {a}.mp3",
        "{a}.mp3 is too loud, make it [quieter|half as loud]",
        "I want {a}.mp3 half as loud",
    ),
}


def generate(rng: random.Random) -> Example:
    """One request for one ffmpeg command; a result of the same format is named `out`."""
    return from_phrasebook(rng, PHRASEBOOK, SLOTS)
