"""Descriptions of file permissions to chmod commands."""

import random

from examples.skills.common import Example, combine, from_phrasebook

NAME = "chmod"
DESCRIPTION = (
    "Turns a description of who may read, change or run a file into a chmod command "
    "with an octal mode, for the modes people use."
)

SLOTS = {
    "file": combine(
        ("", "bin/", "/etc/", "docs/"),
        ("deploy", "notes", "backup", "secret", "start", "report", "run", "key", "install", "data"),
        (".sh", ".txt", ".py", ".cfg", ".pem", ".log", ".csv"),
    ),
    "i": ("I", "the owner", "the user"),
    "me": ("me", "the owner", "its owner"),
    "all": ("everyone", "everybody", "anyone", "the world"),
    "rest": ("the rest", "everyone else", "others", "other users"),
    "edit": ("edit", "change", "write to", "modify"),
    "run": ("run", "execute", "start"),
    "file_mode": ("permissions of", "mode of", "rights on"),
}
SET = "[set|change] the {file_mode} {file} to"

PHRASEBOOK = {
    "chmod 400 {file}": (
        "only {i} may read {file}, [nobody may|no one can] {edit} it",
        "[make|set] {file} read-only for {me}[ and|,] closed to {rest}",
        f"{SET} r--------",
        "{i} can read {file} but not {edit} it, {rest} get nothing",
    ),
    "chmod 600 {file}": (
        "[make|keep] {file} private, only {i} can read and {edit} it",
        "[nobody|no one] but {me} should read or {edit} {file}",
        f"{SET} rw-------",
        "only {i} [can|may] read and {edit} {file}",
        "{i} may read and {edit} {file}, {rest} get nothing",
    ),
    "chmod 700 {file}": (
        "only {i} should be able to read, {edit} and {run} {file}",
        "[nobody|no one] but {me} may read, {edit} or {run} {file}",
        f"{SET} rwx------",
        "full access to {file} for {me}, nothing for {rest}",
        "{i} may do everything with {file}, {rest} nothing at all",
    ),
    "chmod 444 {file}": (
        "[make|set] {file} read-only for {all}",
        "[nobody|no one] may {edit} {file}, {all} may read it",
        f"{SET} r--r--r--",
        "{all} can only read {file}, even {me}",
    ),
    "chmod 644 {file}": (
        "{all} [can|may] read {file} but only {i} [can|may] {edit} it",
        "[make|let] {file} [be |]readable by {all}, writable by {me} only",
        f"{SET} rw-r--r--",
        "{i} may read and {edit} {file}, {rest} may only read it",
        "reading {file} is for {all}, writing only for {me}",
    ),
    "chmod 755 {file}": (
        "{all} [can|may] {run} {file} but only {i} [can|may] {edit} it",
        "[make|let] {file} [be |]executable by {all}, writable by {me} only",
        f"{SET} rwxr-xr-x",
        "{i} may do everything with {file}, {rest} may read and {run} it",
        "running {file} is for {all}, writing only for {me}",
    ),
    "chmod 666 {file}": (
        "{all} [can|may|should] read and {edit} {file}",
        "[make|let] {file} [be |]readable and writable by {all}",
        f"{SET} rw-rw-rw-",
        "reading and writing {file} is allowed to {all}",
    ),
    "chmod 777 {file}": (
        "{all} [can|may|should] read, {edit} and {run} {file}",
        "[give|grant] {all} full access to {file}",
        f"{SET} rwxrwxrwx",
        "no limits on {file}, all rights for {all}",
    ),
    "chmod 640 {file}": (
        "{i} may read and {edit} {file}, the group may [only |]read it, {rest} get nothing",
        "[make|let] {file} [be |]writable by {me}, readable by the group, hidden from {rest}",
        f"{SET} rw-r-----",
        "only {i} may {edit} {file} and only the group may read it too",
    ),
    "chmod 660 {file}": (
        "{i} and the group may read and {edit} {file}, {rest} get nothing",
        "[share|open] {file} with the group for reading and writing, [but |]hide it from {rest}",
        f"{SET} rw-rw----",
        "my group may read and {edit} {file} as I do, nobody else",
    ),
    "chmod 750 {file}": (
        "{i} may do everything with {file}, the group may read and {run} it, {rest} get nothing",
        "the group may {run} {file}, only {i} may {edit} it, {rest} get nothing",
        f"{SET} rwxr-x---",
        "let the group {run} {file} but not {edit} it, and hide it from {rest}",
    ),
    "chmod +x {file}": (
        "[make|mark] {file} [executable|runnable]",
        "{file} [says permission denied|does not start] when I {run} it, [fix that|fix the bit]",
        "[set|add] the [execute|executable] bit [on|of] {file}",
        "I want to be able to {run} {file}",
    ),
}


def generate(rng: random.Random) -> Example:
    """One wish for one file."""
    return from_phrasebook(rng, PHRASEBOOK, SLOTS)
