"""Version control requests to git commands."""

import random

from examples.skills.common import Example, combine, from_phrasebook

NAME = "git"
DESCRIPTION = (
    "Answers what to type in git: undoing commits, switching branches, stashing, tagging and other "
    "everyday version control, as a single command."
)

SLOTS = {
    "file": combine(
        ("", "", "src/", "lib/", "tests/"),
        ("app", "main", "index", "router", "utils", "setup", "notes", "config", "api", "login"),
        (".py", ".go", ".md", ".html", ".ts", ".yaml", ".js", ".rs"),
    ),
    "branch": (
        *("main", "develop", "staging", "hotfix", "experiment", "refactor", "dark-mode"),
        *combine(
            ("", "feature/", "fix/", "release-"),
            ("login", "payments", "search", "typo", "cart", "invoices", "v2", "cleanup", "parser"),
        ),
    ),
    "sha": combine(
        ("a1b", "9f8", "4c0", "7d1", "e83", "0b5"), ("2c", "e7", "ff", "03"), ("3d", "d6")
    ),
    "tag": combine(("v1.", "v2.", "v0.", "v3."), ("0", "1", "2.0", "4.1", "9", "0.3")),
    "n": tuple(str(n) for n in range(2, 16)),
}

PHRASEBOOK = {
    "git restore {file}": (
        "[throw away|discard|drop] my [uncommitted |local |]changes in {file}",
        "I [messed up|broke] {file}, [bring|give me] back the [last |]committed version",
        "[reset|revert] {file} to what [was last committed|is in HEAD]",
        "[lose|undo|scrap] [what I did|all I did|my work] in {file} since the last commit",
        "how do I [throw away|discard|undo] [changes|edits|my edits] [to|in] {file}?",
        "undo my [edits|uncommitted edits] to {file}",
    ),
    "git restore --staged {file}": (
        "[unstage|un-add] {file}",
        "[take|remove] {file} [out of the staging area|from the index] but keep my edits",
        "I [staged|added] {file} by mistake, how do I [undo the add|unstage it]?",
        "I do not want {file} in the next commit[, but keep my edits|]",
        "{file} should not be [staged|in the next commit] after all",
    ),
    "git reset --soft HEAD~{n}": (
        "undo the last {n} commits but keep [the changes|my work]",
        "[uncommit|take back] my last {n} commits[ without losing the edits|, changes stay staged]",
        "go back {n} commits, [leave|keep] my changes [staged|in place]",
        "[remove|drop] {n} commits [but|and] [leave|keep] [what they changed|the files]",
    ),
    "git reset --hard HEAD~{n}": (
        "[delete|drop|erase] the last {n} commits and [all their changes|everything in them]",
        "[throw away|get rid of] my last {n} commits [completely|for good], changes included",
        "go back {n} commits and [forget|lose] everything since",
        "the last {n} commits [were|are] [a mistake|rubbish], [wipe|remove] them and their changes",
    ),
    "git switch -c {branch}": (
        "[create|make|start] a [new |]branch [called|named] {branch}[ and switch to it|]",
        "I want to work on a [new|fresh] branch {branch}",
        "[open|branch off to] a new branch {branch} from here",
    ),
    "git switch {branch}": (
        "[go|change|switch|move] [over |back |]to [the branch {branch}|the {branch} branch]",
        "[check out|get me on] the [existing |]branch {branch}",
        "how do I [get back|return] to [the {branch} branch|branch {branch}]?",
        "[continue|carry on] [working |]on the [existing |]branch {branch}",
    ),
    "git branch -d {branch}": (
        "[delete|remove] the [local |]branch {branch}[ on my machine|]",
        "branch {branch} is merged, [get rid of it|remove it|clean it up] locally",
        "I [no longer|do not] need [my|the] [local |]{branch} branch[ any more|]",
        "my local branch {branch} can go",
    ),
    "git merge {branch}": (
        "[merge|bring] [the |]{branch} [branch |]into [my|the current|this] branch",
        "[combine|join] the work [on|from] {branch} with my branch in a merge",
        "I want [everything|all changes|the work] from [branch |]{branch} [merged|merged in] here",
        "get the commits of {branch} into my branch with a merge",
    ),
    "git rebase {branch}": (
        "[put|replay|move] my commits on top of {branch}",
        "rebase [my branch|this branch|my work] [onto|on] {branch}",
        "my [branch|work] should sit on top of [the latest |]{branch}[, no merge|]",
        "make my commits start from {branch} instead",
    ),
    "git log --oneline -n {n}": (
        "[show|list|print] the last {n} commits[, one line each| in short form|]",
        "what were the [last|latest|most recent] {n} commits?",
        "[short|brief] history of the last {n} commits",
        "I want to see {n} recent commits, one per line",
    ),
    "git log --follow {file}": (
        "[show|list] every commit that [touched|changed] {file}",
        "[what is|show me] the [history|commit history] of {file}[, renames included|]",
        "how did {file} [change|evolve] over time[, commit by commit|]?",
        "all past commits for the file {file}",
    ),
    "git blame {file}": (
        "who [wrote|changed|last touched] each line of {file}?",
        "[show|tell] me who is [responsible|to blame] for every line in {file}",
        "line by line, who last edited {file}",
    ),
    "git diff {branch}": (
        "[what is different|show the differences] between my work and [branch |]{branch}",
        "[compare|diff] my [files|working tree] [with|against|to] {branch}",
        "how does my [code|work] differ from [the {branch} branch|{branch}]?",
        "what would change compared to {branch}?",
    ),
    "git diff --staged": (
        "[show|what are|list] the [staged changes|changes that are staged][ so far|]",
        "what [exactly |]will [go into|be in] my next commit?",
        "let me [see|review] [what I have staged|the diff of what I added][ before I commit|]",
        "show me what I am about to commit",
    ),
    "git stash": (
        "[put|set] my [uncommitted |unfinished |]changes aside [for now|for a moment|for later]",
        "[save|park|shelve] my [unfinished|uncommitted|half-done] work "
        "without [committing|a commit]",
        "[stash|stash away] [everything|my changes|my work]",
        "I need a clean working tree for a minute, keep my [edits|changes] somewhere",
    ),
    "git stash pop": (
        "[bring|get] back the [changes|edits|work] I [put aside|stashed|shelved|parked][ earlier|]",
        "[restore|reapply|unstash] my [stashed|shelved] [changes|work|edits][ now|]",
        "[take|get] my stashed [work|changes] out again",
        "put the changes from the stash back",
    ),
    "git cherry-pick {sha}": (
        "[take|copy|pick|apply] [just |only |]commit {sha} [onto|to|into] my branch",
        "I [only |]need [commit {sha}|the commit {sha}] from the other branch",
        "bring over the [single |]commit {sha}[ here| to this branch|]",
        "put commit {sha} on [this|my] branch too",
    ),
    "git revert {sha}": (
        "[undo|reverse|back out] commit {sha} with a new commit",
        "{sha} [broke|breaks] [production|the build], make a commit that [undoes|reverts] it",
        "revert the commit {sha}",
    ),
    "git show {sha}": (
        "what [changed in|did] commit {sha}[ change|]?",
        "[show|display|let me see] [the contents of |]commit {sha}",
        "I want to [look at|see] [the details of |]commit {sha}",
        "what is in commit {sha}?",
    ),
    "git push -u origin {branch}": (
        "[push|publish|upload] [my |the |]new branch {branch} "
        "[to origin|and track it|to the remote]",
        "[push|publish] {branch} for the first time",
        "get my branch {branch} onto the server with tracking",
    ),
    "git push origin --delete {branch}": (
        "[delete|remove] [branch |]{branch} [on the remote|from origin|on the server]",
        "the remote branch {branch} [can go|should be deleted]",
        "get rid of {branch} on [origin|the remote|the server]",
        "take the branch {branch} off the server",
    ),
    "git tag {tag}": (
        "[tag|mark|label] [this commit|the current commit|what I have now] [as|with] {tag}",
        "[create|add|make] a tag [called |]{tag}[ here|]",
        "put the tag {tag} on the current commit",
    ),
    "git reset --soft HEAD~1": (
        "undo [my|the] last commit but keep [the|my] changes",
        "[uncommit|take back] my last commit[, changes stay| without losing the edits|]",
        "I committed too early, [undo it but keep the work|take it back, keep my edits]",
        "undo the commit I just made but not the edits",
    ),
    "git commit --amend --no-edit": (
        "[add|put] the staged [changes|files] [to|into] the [last|previous] commit, same message",
        "I forgot [a file|something] in my last commit, [include|add] it and keep the message",
        "amend the last commit and keep its message",
    ),
}


def generate(rng: random.Random) -> Example:
    """One request for one git command."""
    return from_phrasebook(rng, PHRASEBOOK, SLOTS)
