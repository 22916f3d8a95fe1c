"""Situations on the web to HTTP status codes."""

import random

from examples.skills.common import Example, expand, pick_wording

NAME = "http-status"
DESCRIPTION = (
    "Names the HTTP status code that fits a situation: what a server should answer, "
    "or what a client has just run into."
)

SITUATIONS = {
    "200 OK": (
        "the request [succeeded|worked|went fine] and the [data|result|page] is in the body",
        "a GET [worked|succeeded] and we return the [record|document|list]",
        "everything [is fine|went well] and the [page|answer] is [delivered|sent]",
    ),
    "201 Created": (
        "a POST [just |]made a new [user|record|order|resource]",
        "the new [account|item|comment|file] was [created|saved] [successfully|on the server]",
        "a resource [now exists|was created] because of the request",
    ),
    "202 Accepted": (
        "the [work|job|task] was [queued|taken in] and will be [done|processed] later",
        "we [accept|took] the [upload|job|request] but processing [is not finished|happens later]",
    ),
    "204 No Content": (
        "the [delete|update|request] worked and there is [nothing to send back|no body to return]",
        "[success|it worked], with an empty [body|response]",
    ),
    "301 Moved Permanently": (
        "the [page|site|url|resource] has moved [for good|forever|permanently]",
        "the old [address|url|link] is replaced by a new one [for good|for ever|permanently]",
    ),
    "302 Found": (
        "the [page|resource|url] is [temporarily|for now|for a short time] at another address",
        "we redirect [the visitor|the browser] [temporarily|just for now|only this time]",
    ),
    "304 Not Modified": (
        "the [cached|browser's] copy is still [fresh|good|valid]",
        "nothing changed since the client [last fetched|cached] the [page|file|resource]",
    ),
    "400 Bad Request": (
        "the [json|request|query] [is malformed|cannot be parsed|has broken syntax]",
        "the client sent [garbage|invalid syntax|a broken request]",
    ),
    "401 Unauthorized": (
        "the [caller|user|client] is not logged in",
        "the [token|session|api key] [is missing|has expired|is invalid]",
        "no [credentials|login|token] came with the request",
    ),
    "403 Forbidden": (
        "the user is logged in but [not allowed|lacks the rights] to [see|open|do] this",
        "we know who it is, but they [have no permission|may not enter|lack the role]",
    ),
    "404 Not Found": (
        "the [page|record|file|user|url] does not exist",
        "there is no [such page|such record|resource with that id|route for this url]",
    ),
    "405 Method Not Allowed": (
        "somebody [sends|tries] a [DELETE|PUT|POST] [to a read-only endpoint|where only GET works]",
        "the [verb|http verb|method] is not supported [by this endpoint|on this url]",
    ),
    "408 Request Timeout": (
        "the client took too long to send [its request|the body|the rest of its data]",
        "the server gave up waiting for the client's [request|data|body]",
    ),
    "409 Conflict": (
        "two [edits|updates|writes] [clash|collide|conflict]",
        "the [username|email|name] is already taken",
        "the [record|version] was changed by somebody else in between",
    ),
    "413 Content Too Large": (
        "the [upload|file|body] is [bigger than we allow|too big|over the size limit]",
        "someone [uploads|posts] a [file|body] larger than the limit",
    ),
    "418 I'm a teapot": (
        "a teapot is asked to [brew|make] coffee",
        "coffee is wanted from a teapot",
    ),
    "422 Unprocessable Content": (
        "the [json|form] parses but [fails validation|a field has an impossible value]",
        "syntax is fine but the [values|fields] [make no sense|break the validation rules]",
    ),
    "429 Too Many Requests": (
        "the client [calls|hits] the api too often",
        "the [rate limit|request quota] [is exceeded|is used up|was hit]",
        "somebody [hammers|floods] [us|the api] with requests",
    ),
    "500 Internal Server Error": (
        "the [server|code|backend] [crashed|threw an exception|hit a bug]",
        "an unexpected [error|exception] happened [on the server|in our code]",
    ),
    "502 Bad Gateway": (
        "the proxy got [a broken|an invalid|a nonsense] [answer|response] from the upstream",
        "the upstream [answered|replied] with [garbage|nonsense] to our proxy",
    ),
    "503 Service Unavailable": (
        "the server is [overloaded|down for maintenance|too busy right now]",
        "we are [in maintenance|over capacity], [come back later|try again later]",
    ),
    "504 Gateway Timeout": (
        "the proxy [waited too long for|got no answer in time from] the upstream",
        "the upstream [did not answer|was too slow for] the proxy[ in time|]",
    ),
}

FRAMES = (
    "{situation}[, which status code| - which code| - which http status|: what code is that]?",
    "[which|what] [status code|http code|http status|response code] [if|when|means] {situation}?",
    "[what|which code] should [my|the|our] [server|api] [return|answer] [if|when] {situation}?",
    "{situation}, [what do I return|what does the server answer|what do we respond with]?",
    "[status|status code|http code|response code|code] for: {situation}",
    "[give|tell] me the [status code|http code|http status] for when {situation}",
    "[in my api|in http|on the web], {situation}. [status|code|which code]?",
    "[name|pick] the [right|proper] [status|http status|response code] [if|when] {situation}",
    "how does a web server [say|signal] that {situation}?",
)


def generate(rng: random.Random) -> Example:
    """One situation in one of the frames."""
    status = rng.choice(list(SITUATIONS))
    frame, held_out = pick_wording(rng, FRAMES)
    situation = rng.choice(SITUATIONS[status])
    return Example(expand(rng, frame.replace("{situation}", situation)), status, held_out)
