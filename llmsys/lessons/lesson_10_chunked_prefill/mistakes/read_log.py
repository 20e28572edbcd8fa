"""Wrong answers to 10.read_log: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_10_chunked_prefill.right import read_log

wrong = Mistakes("10.read_log", read_log)

ARRIVED = "        if isinstance(event, Arrived):\n"
MET = "met = [name for name in finished if ttft[name] <= limits.ttft and tpot.get(name, 0) <= limits.tpot]"
SECONDS = "(max(ended.values()) - min(arrived.values()))"

wrong(
    "by_the_tokens",
    "You divide by the number of tokens.",
    ("(count[name] - 1) for", "count[name] for"),
    why="Between n tokens there are n − 1 pauses. The wait for the first one is TTFT.",
)
wrong(
    "tpot_from_the_arrival",
    "Your TPOT begins with the arrival.",
    ("(last[name] - first[name])", "(last[name] - arrived[name])"),
    why="The wait for the first token is TTFT's. TPOT is what comes after it.",
)
wrong(
    "all_by_the_tokens",
    "You divide the time from the arrival to the last token by the number of tokens.",
    ("(last[name] - first[name]) / (count[name] - 1)", "(last[name] - arrived[name]) / count[name]"),
    why="The wait for the first token is TTFT's. Between n tokens there are n − 1 pauses.",
)
wrong(
    "begins_again",
    "You forget what a request has said when it is preempted.",
    ("        elif isinstance(event, Finished",
     '        elif type(event).__name__ == "Preempted":\n            first.pop(event.request, None)\n'
     "            count[event.request] = 0\n        elif isinstance(event, Finished"),
    why="Its user has read these tokens. They are not said again.",
)  # fmt: skip
wrong(
    "only_finished",
    "You give TTFT and TPOT of those alone that finished.",
    ("for name in first}", "for name in first if name in finished}"),
    ("if count[name] > 1", "if count[name] > 1 and name in finished"),
    why="Whoever has a token has waited for it, however it ends.",
)
wrong(
    "from_admission",
    "Your TTFT begins when the request is admitted.",
    (ARRIVED, '        if type(event).__name__ == "Admitted":\n'),
    why="The wait in the queue is a wait, too: begin with Arrived.",
)
wrong(
    "first_token_is_the_last",
    "You take each token for the first one.",
    ("first.setdefault(event.request, event.time)", "first[event.request] = event.time"),
    why="Only the first Token of a request ends its TTFT.",
)
wrong(
    "one_token_is_slow",
    "You leave out answers of one token where you count who met the limits.",
    ("tpot.get(name, 0)", "tpot.get(name, float('inf'))"),
    why="They have no second token to wait for, so they meet any limit to TPOT.",
)
wrong(
    "tpot_of_one_token",
    "You give an answer of one token a TPOT of 0.",
    ("(count[name] - 1) for name in first if count[name] > 1", "max(1, count[name] - 1) for name in first"),
    why="It has none: means over all requests would be too good.",
)
wrong(
    "either_limit",
    "You count who met one of the two limits.",
    ("limits.ttft and", "limits.ttft or"),
    why="A request wants both.",
)
wrong(
    "ttft_alone",
    "You do not look at the limit to TPOT.",
    (" and tpot.get(name, 0) <= limits.tpot", ""),
    why="A request wants both.",
)
wrong(
    "tpot_alone",
    "You do not look at the limit to TTFT.",
    ("ttft[name] <= limits.ttft and ", ""),
    why="A request wants both.",
)
wrong(
    "below_the_limit",
    "You count only who is faster than the limit, and not who needs just as long.",
    ("<= limits.tpot", "< limits.tpot"),
    why="To need just as long as is allowed is to meet the limit.",
)
wrong(
    "below_the_first",
    "You count only who is faster than the limit to TTFT.",
    ("<= limits.ttft", "< limits.ttft"),
    why="To need just as long as is allowed is to meet the limit.",
)
wrong(
    "throughput",
    "You count everybody who has finished.",
    (MET, "met = finished"),
    why="That is throughput. Goodput counts those that met both limits.",
)
wrong(
    "a_share",
    "You do not divide how many requests met the limits by the seconds.",
    (SECONDS, "len(arrived)"),
    why="A share of the requests is attainment. Goodput is how many did in a second.",
)
wrong(
    "from_zero",
    "Your seconds begin at 0.",
    (" - min(arrived.values())", ""),
    why="The clock may have run long before the first request came.",
)
wrong(
    "from_the_first_token",
    "Your seconds begin with the first token.",
    ("min(arrived.values())", "min(first.values())"),
    why="They run from the first arrival: from then on somebody waits.",
)
wrong(
    "from_the_last_arrival",
    "Your seconds begin with the last arrival.",
    ("min(arrived.values())", "max(arrived.values())"),
    why="They run from the first one: the service has worked since then.",
)
wrong(
    "until_the_last_success",
    "Your seconds end with the last one that finished.",
    ("max(ended.values())", "max(ended[name] for name in finished)"),
    why="The service was busy with those that failed, too.",
)
wrong(
    "until_the_last_token",
    "Your seconds end with the last token.",
    ("max(ended.values())", "max(last.values())"),
    why="A request may end after its last token, one that is aborted, say; and one that has not ended has tokens, too.",
)
wrong(
    "until_the_last_event",
    "Your seconds end with the last event of the log.",
    ("max(ended.values())", "event.time"),
    why="A log may go on after the last end. An end has an event of its own: Finished, Failed or Aborted.",
)
wrong(
    "until_the_last_step",
    "Your seconds end with the last step.",
    ("    for event in events:\n",
     '    for event in events:\n        if type(event).__name__ == "StepDone":\n            done = event.time\n'),
    ("max(ended.values())", "done"),
    why="Steps may go on after the last end. An end has an event of its own: Finished, Failed or Aborted.",
)  # fmt: skip
wrong(
    "aborted_count",
    "You count those that failed or were aborted among those that met the limits.",
    ("            if isinstance(event, Finished):\n                finished.add(event.request)\n",
     "            if event.request in first:\n                finished.add(event.request)\n"),
    why="They did not get their answers.",
)  # fmt: skip
wrong(
    "moments",
    "You count moments at which tokens came, and not tokens.",
    ("            last[event.request] = event.time\n"
     "            count[event.request] = count.get(event.request, 0) + 1\n",
     "            count[event.request] = count.get(event.request, 0) + (last.get(event.request) != event.time)\n"
     "            last[event.request] = event.time\n"),
    why="Several tokens may come in one step. There is a pause of 0 between them.",
)  # fmt: skip
