"""Schedules in English to cron expressions."""

import random

from examples.skills.common import Example, expand, pick_wording

NAME = "cron"
DESCRIPTION = (
    "Turns a schedule in plain English into a five-field cron expression, "
    "such as every weekday at half past nine."
)

HOURS = (
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
ORDINALS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", 10: "tenth"}
INTERVALS = {2: "two", 3: "three", 5: "five", 10: "ten", 15: "fifteen", 20: "twenty", 30: "thirty"}

PAST_THE_HOUR = (
    *((0, "{} o'clock"), (0, "{} sharp"), (30, "half past {}"), (30, "half past {}")),
    *((15, "[a |]quarter past {}"), (-15, "[a |]quarter to {}"), (30, "{} thirty")),
    *((10, "ten past {}"), (20, "twenty past {}"), (15, "{} fifteen"), (45, "{} forty-five")),
)
PERIODS = (
    *(("morning", range(4, 12), 0), ("afternoon", range(1, 6), 12)),
    *(("evening", range(5, 12), 12), ("night", range(8, 12), 12)),
)

JOB = (
    "[it|this|the job|the backup|the report|the sync|my script|the cleanup|the newsletter|"
    "the import|the health check|the database dump|the mail digest|the pipeline|invoices]"
)
FRAMES = (
    *("{when}",) * 5,
    f"[run|start|trigger|launch|kick off|execute|do|send] {JOB} {{when}}",
    f"{{when}}[,|] [run|start|trigger|kick off|do|send] {JOB}",
    f"I [want|need|would like] {JOB} to [run|start|go off|go out|happen] {{when}}",
    f"[can you|could you|please] [schedule|set up|plan|put] {JOB} {{when}}?",
    f"{JOB} [should|must|has to|needs to] [run|start|go out|happen] {{when}}",
    "[what|which] [schedule|schedule line|timer line|crontab entry] [means|is|says] {when}?",
    "[how do I write|how would I say|give me the schedule for|write the schedule for] {when}",
    f"make sure {JOB} [runs|starts|goes out|happens] {{when}}",
    f"[set a timer for|we do|there should be a run of|remind me of] {JOB} {{when}}",
    f"[how can I get|is there a way to have] {JOB} [run|started|go out] {{when}}?",
    f"{JOB} [goes out|gets started|is supposed to run] {{when}}, how do I schedule that?",
)


def generate(rng: random.Random) -> Example:
    """One schedule in one of the frames."""
    when, fields = interval(rng) if rng.random() < 0.25 else moment(rng)
    frame, held_out = pick_wording(rng, FRAMES)
    return Example(expand(rng, frame.format(when=when)), fields, held_out)


def moment(rng: random.Random) -> tuple[str, str]:
    """A time of day on certain days, in either order."""
    if rng.random() < 0.1:
        return daily_period(rng)
    time, hour, minute = clock(rng)
    day, date_fields = days(rng)
    text = rng.choice((*(f"{day} at {time}",) * 3, f"at {time} {day}", f"{day}, {time}"))
    return text, f"{minute} {hour} {date_fields}"


def daily_period(rng: random.Random) -> tuple[str, str]:
    """A daily time such as "every evening at 7:30", which is after noon for the period's sake."""
    period, hours, offset = rng.choice(PERIODS)
    hour, minute = rng.choice(hours), rng.choice((0, 0, 15, 30, 45))
    time = f"{hour}:{minute:02}" if minute else f"[{hour}|{HOURS[hour - 1]}]"
    return f"[every|each] {period} at {time}", f"{minute} {hour + offset} * * *"


def clock(rng: random.Random) -> tuple[str, int, int]:
    """A time of day in English, its hour and its minute."""
    hour, minute = rng.randrange(24), rng.choice((0, 0, 15, 30, 45, 5 * rng.randrange(12)))
    match rng.randrange(8):
        case 0:
            return rng.choice((("[noon|midday]", 12, 0), ("midnight", 0, 0)))
        case 1 | 2:
            return f"[{hour}|{hour:02}]:{minute:02}", hour, minute
        case 3 | 4 | 5:
            minutes = f":{minute:02}" if minute else ""
            suffix = "[am| am|AM]" if hour < 12 else "[pm| pm|PM]"
            return f"{(hour - 1) % 12 + 1}{minutes}{suffix}", hour, minute
        case _:
            return spoken_clock(rng)


def spoken_clock(rng: random.Random) -> tuple[str, int, int]:
    """A time such as "quarter to eight in the evening"; without a period the hour is literal."""
    shift, pattern = rng.choice(PAST_THE_HOUR)
    hour, offset, suffix = rng.randrange(1, 13), 0, ""
    if rng.random() < 0.4:
        period, hours, offset = rng.choice(PERIODS)
        hour = rng.choice(hours)
        suffix = " at night" if period == "night" else f" in the {period}"
    minutes = (hour + offset) * 60 + shift
    text = pattern.format(f"[{HOURS[hour - 1]}|{HOURS[hour - 1]}|{hour}]") + suffix
    return text, minutes // 60, minutes % 60


def days(rng: random.Random) -> tuple[str, str]:
    """Days in English, and the cron fields day of month, month and day of week."""
    day, month = rng.randrange(1, 29), rng.randrange(12)
    nth = f"[the|day] {day}" if rng.random() < 0.2 else f"the {ordinal(day)}"
    one, two = sorted(rng.sample(range(7), 2))
    first, second = WEEKDAYS[one].capitalize(), WEEKDAYS[two].capitalize()
    month_name = MONTHS[month].capitalize()
    return rng.choice(
        (
            ("[every day|daily|each day|every single day]", "* * *"),
            ("[every|each] [weekday|workday|working day|business day]", "* * 1-5"),
            ("[on weekdays|Monday to Friday|on workdays|Monday through Friday]", "* * 1-5"),
            ("[on weekends|every weekend|Saturdays and Sundays|on the weekend]", "* * 0,6"),
            (f"[every {first}|on {first}s|each {first}|weekly on {first}]", f"* * {one}"),
            (f"[every {second}|on {second}s|each {second}|{second}s]", f"* * {two}"),
            (f"[on {first}s and {second}s|every {first} and {second}]", f"* * {one},{two}"),
            (f"on {nth} of [every|each|the] month", f"{day} * *"),
            (f"[monthly on {nth}|every month on {nth}]", f"{day} * *"),
            (f"[every year|each year|yearly] on {month_name} {day}", f"{day} {month + 1} *"),
            (f"[every day|daily|each day] in {month_name}", f"* {month + 1} *"),
        )
    )


def ordinal(day: int) -> str:
    """A day of the month as people write it: first, 2nd, 15th."""
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day // 10 != 1 else 0, "th")
    return f"[{day}{suffix}|{ORDINALS[day]}]" if day in ORDINALS else f"{day}{suffix}"


def interval(rng: random.Random) -> tuple[str, str]:
    """A repeating schedule such as "every ten minutes on weekdays"."""
    count = rng.choice(list(INTERVALS))
    past = rng.choice((5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55))
    hours = rng.choice((2, 3, 4, 6, 8, 12))
    number = f"[{count}|{INTERVALS[count]}]"
    text, fields = rng.choice(
        (
            (f"every {number} [minutes|minutes|mins]", f"*/{count} *"),
            ("[every quarter of an hour|four times an hour]", "*/15 *"),
            ("[every half hour|every half an hour|twice an hour]", "*/30 *"),
            ("[every minute|once a minute|each minute]", "* *"),
            ("[every hour|hourly|once an hour|each hour|on the hour]", "0 *"),
            (f"every [{hours}|{HOURS[hours - 1]}] hours", f"0 */{hours}"),
            (f"[at {past} past every hour|{past} minutes past each hour]", f"{past} *"),
        )
    )
    suffix, date_fields = rng.choice(
        (
            *(("", "* * *"),) * 4,
            (" [on weekdays|Monday to Friday|on workdays]", "* * 1-5"),
            (" [on weekends|on the weekend]", "* * 0,6"),
        )
    )
    return text + suffix, f"{fields} {date_fields}"
