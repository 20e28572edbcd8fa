"""Wrong answers to 09.steps: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_09_continuous_batching.right_steps import RightSteps

wrong_steps = Mistakes("09.steps", RightSteps)

START = "        left, shares = self.max_tokens_per_step, []\n"
GO_ON = (
    "        for request in tuple(self.running):\n            n = min(len(request.tokens) - request.computed, left)\n"
)
ROOM = "            if self.make_room(request):\n"
TAKEN = "                shares.append((request, n))\n                left -= n\n"
LET_IN = "        while left > 0 and len(self.running) < self.max_sequences:\n"
NOBODY = "            if request is None:\n                break\n"
NEW = "                break\n            n = min(len(request.tokens) - request.computed, left)\n"
NEW_TAKEN = "            shares.append((request, n))\n            left -= n\n        return shares\n"
LOOP = (
    LET_IN
    + "            request = self.admit()\n"
    + NOBODY
    + NEW.removeprefix("                break\n")
    + NEW_TAKEN.removesuffix("        return shares\n")
)
LOGITS = "return int(request.computed + n == len(request.tokens))"
COMPUTED = "        request.computed += n\n"
KNOWN = "        request.tokens += said\n"

# The budget

wrong_steps(
    "new_ones_are_free",
    "You do not count the tokens of those that are let in.",
    (NEW_TAKEN, "            shares.append((request, n))\n        return shares\n"),
    why="Each of them has the whole of what is left, and the step has more tokens than max_tokens_per_step.",
)
wrong_steps(
    "running_ones_are_free",
    "You do not count the tokens of those that run already.",
    (TAKEN, "                shares.append((request, n))\n"),
    why="A step of sixty answers and a full budget of prompts is longer than the budget by sixty.",
)
wrong_steps(
    "never_cut",
    "You never cut a prompt.",
    ("min(len(request.tokens) - request.computed, left)", "len(request.tokens) - request.computed", 2),
    why="One long prompt, and everybody waits for a step that is ten times as long.",
)
wrong_steps(
    "budget_for_each",
    "You give each request the whole budget of the step.",
    ("request.computed, left)", "request.computed, self.max_tokens_per_step)", 2),
    why="The budget is all of theirs together. Keep what is left of it in a number.",
)
wrong_steps(
    "only_whole_prompts",
    "You let a request in only if its whole prompt fits into what is left.",
    (
        "            request = self.admit()\n",
        "            if self.waiting and len(self.waiting[0].tokens) > left:\n"
        "                break\n"
        "            request = self.admit()\n",
    ),
    why="A prompt that is longer than a step would wait for ever, and what is left of each step stays empty.",
)
wrong_steps(
    "one_token_for_the_running",
    "You give a running request one token, even one that is in the middle of its prompt.",
    (GO_ON, "        for request in tuple(self.running):\n            n = 1\n"),
    why="Running is not the same as answering. What it has left to compute is known − computed.",
)
wrong_steps(
    "no_token_left_for_it",
    "You let somebody in for whom the step has no token left.",
    ("left > 0", "left >= 0"),
    why="It would take blocks and a place, and compute nothing.",
)
wrong_steps(
    "last_token_unused",
    "You leave the last token of a step unused.",
    ("left > 0", "left > 1"),
    why="One token left is enough to begin a prompt with.",
)
wrong_steps(
    "shares_are_kept",
    "Your list of shares still has those of the step before.",
    (START, '        left, shares = self.max_tokens_per_step, self.__dict__.setdefault("shares", [])\n'),
    why="One list that all calls share is changed by each of them. Each step has a list of its own.",
)

# Who computes

wrong_steps(
    "new_ones_first",
    "You let new ones in first, and leave the others what remains.",
    (LOOP, ""),
    (START, START + "        running = tuple(self.running)\n" + LOOP),
    ("for request in tuple(self.running)", "for request in running"),
    (ROOM, "            if n and self.make_room(request):\n"),
    why="Whoever is in the middle of an answer waits then, as long as prompts come. First those that run.",
)
wrong_steps(
    "newest_first",
    "You go through the running ones from the newest to the oldest.",
    ("in tuple(self.running)", "in tuple(self.running)[::-1]"),
    (ROOM, "            if n and self.make_room(request):\n"),
    why="The newest may be in the middle of its prompt, and takes all of the step. The oldest come first.",
)
wrong_steps(
    "long_prompts_first",
    "You go through the running ones by what they have left to compute, the longest first.",
    ("in tuple(self.running)", "in sorted(self.running, key=lambda each: each.computed - len(each.tokens))"),
    (ROOM, "            if n and self.make_room(request):\n"),
    why="A prompt takes all of the step, and those that answer wait for it. The oldest come first.",
)
wrong_steps(
    "static",
    "You let nobody in while others run.",
    (LET_IN, "        if shares:\n            return shares\n" + LET_IN),
    why="That is a static batch: empty places, until the longest answer ends.",
)
wrong_steps(
    "one_a_step",
    "You let one request in at each step, and not more.",
    (LET_IN, LET_IN.replace("while", "if")),
    (NOBODY, NOBODY.replace("break", "return shares")),
    why="There may be tokens and places for several.",
)
wrong_steps(
    "a_place_too_many",
    "You let one more in than there are places.",
    ("< self.max_sequences", "<= self.max_sequences"),
    why="At most max_sequences run. Ask before you let another one in.",
)
wrong_steps(
    "places_are_not_counted",
    "You do not look at max_sequences.",
    (" and len(self.running) < self.max_sequences", ""),
    why="A step has a row for each request, and no more rows than that.",
)
wrong_steps(
    "places_of_the_step",
    "You count places as if only those let in now had one.",
    (LET_IN, "        new = 0\n" + LET_IN.replace("len(self.running)", "new")),
    (NEW_TAKEN, NEW_TAKEN.replace("            left -= n\n", "            left -= n\n            new += 1\n")),
    why="Those that run have places, too.",
)
wrong_steps(
    "nobody_came",
    "You do not look whether anybody was let in.",
    (NOBODY, ""),
    why="admit returns None where nobody waits, or there is no room.",
)

# Room

wrong_steps(
    "room_is_not_asked_for",
    "You do not ask for room.",
    (ROOM, "            if True:\n"),
    why="An answer grows by a token a step, and sooner or later its last block is full.",
)
wrong_steps(
    "no_room_is_ignored",
    "You give tokens to a request that has no room for them.",
    (ROOM, "            if self.make_room(request) or True:\n"),
    why="make_room says False: it has been thrown out, and computes nothing in this step.",
)

# What was found

wrong_steps(
    "whole_prompt_after_a_hit",
    "You give a request that is let in its whole prompt, though some of it was found.",
    (NEW, "                break\n            n = min(len(request.tokens), left)\n"),
    why="What was found is computed: look at request.computed when it has been let in.",
)
wrong_steps(
    "hit_is_charged",
    "You count what was found as tokens of the step.",
    (NEW_TAKEN, NEW_TAKEN.replace("left -= n", "left -= min(len(request.tokens), left)")),
    why="It is not computed, so it takes nothing of the step: others could compute instead.",
)

# What comes of it

wrong_steps(
    "asks_after_each_piece",
    "You ask for the next token after each piece of a prompt.",
    (LOGITS, "return 1"),
    why="The prompt goes on with its own next token, which is known. What the model says there is not the answer.",
)
wrong_steps(
    "decodes_alone_say",
    "You ask for a token only where a single one is computed.",
    (LOGITS, "return int(n == 1)"),
    why="The last piece of a prompt says the answer's first token, however long the piece is; and a piece of a single "
    "token may have more of the prompt after it.",
)
wrong_steps(
    "prompts_say_nothing",
    "You ask for a token only where a single one is computed, and a request that has nothing left stands still.",
    (LOGITS, "return int(n == 1)"),
    (ROOM, "            if n and self.make_room(request):\n"),
    why="The last piece of a prompt says the answer's first token, however long the piece is.",
)
wrong_steps(
    "asks_too_late",
    "You ask for the next token where nothing is left to compute before the step.",
    (LOGITS, "return int(request.computed == len(request.tokens))"),
    why="That is never so. After these n tokens, nothing may be left.",
)
wrong_steps(
    "asks_a_token_early",
    "You ask for the next token one token too early.",
    (LOGITS, "return int(request.computed + n >= len(request.tokens) - 1)"),
    why="With one known token left, the next one is known, and another model's guess is not wanted.",
)
wrong_steps(
    "prompt_alone",
    "You compare with the prompt's tokens, and not with all that are known.",
    (LOGITS, "return int(request.computed + n >= len(request.prompt))"),
    why="One that begins again has an answer that is known, too: a piece may end in the middle of that.",
)
wrong_steps(
    "said_is_computed",
    "You count the token that was said as computed.",
    (COMPUTED, "        request.computed += n + len(said)\n"),
    why="It is known. Its keys and values are computed by the next step.",
)
wrong_steps(
    "computed_is_all_but_one",
    "You take all known tokens but the newest for computed after each step.",
    (COMPUTED + KNOWN, KNOWN + "        request.computed = len(request.tokens) - 1\n"),
    why="That holds for whoever answers. After a piece of a prompt, the rest of it is not computed either.",
)
wrong_steps(
    "never_computed",
    "You do not note what was computed.",
    (COMPUTED, ""),
    why="Each step would compute everything again.",
)
wrong_steps(
    "computed_if_it_said",
    "You note what was computed only where a token was said.",
    (COMPUTED, "        request.computed += n if said else 0\n"),
    why="A piece of a prompt says nothing, and is computed all the same.",
)
wrong_steps(
    "computed_is_all_known",
    "You take all known tokens for computed after each step.",
    (COMPUTED + KNOWN, "        request.computed = len(request.tokens)\n" + KNOWN),
    why="After a piece, the rest of the prompt is not. n tokens more are computed.",
)
wrong_steps(
    "never_known",
    "What was said never becomes known.",
    (KNOWN, ""),
    why="The next step computes it, and so it must be among request.tokens.",
)
