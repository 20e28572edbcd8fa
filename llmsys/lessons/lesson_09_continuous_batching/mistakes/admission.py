"""Wrong answers to 09.admission: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_09_continuous_batching.right_admission import RightAdmission

wrong_admission = Mistakes("09.admission", RightAdmission)

GROWS = "                self.pool.extend(request.table, len(request.tokens))\n"
NEWEST = "newest = self.running[-1]"
THROWN_OUT = (
    "                self.preempt(newest)\n                if newest is request:\n                    return False\n"
)
FREED = "        self.pool.free(request.table)\n"
NOT_COMPUTED = "        request.computed = 0\n"
BACK = "self.waiting.insert(0, request)"
NOBODY = "if self.preempted or not self.waiting:"
FIRST = "request = self.waiting[0]"
MATCH = "hit = self.pool.match(request.tokens)"
RESERVE = "reserve = self.reserve if self.running else 0"
ALLOCATE = "self.pool.allocate(len(request.tokens), hit, reserve=reserve)"
HIT = "request.computed = hit.tokens"
LEAVES = "        self.waiting.remove(request)\n        self.running.append(request)\n"

# Who is thrown out

wrong_admission(
    "oldest_goes",
    "You throw out the oldest.",
    (NEWEST, "newest = self.running[0]"),
    why="It has come furthest, and all of it is lost. If the newest goes, the oldest always reaches its end.",
)
wrong_admission(
    "least_computed_goes",
    "You throw out the one with the fewest tokens.",
    (NEWEST, "newest = min(self.running, key=lambda each: each.computed)"),
    why="The least is lost, but it may be an old one: longer ones that come later would stop it, again and again.",
)
wrong_admission(
    "longest_goes",
    "You throw out the one with the most tokens.",
    (NEWEST, "newest = max(self.running, key=lambda each: len(each.tokens))"),
    why="It frees the most, and loses the most; and two long ones can throw each other out for ever.",
)
wrong_admission(
    "itself_goes",
    "You throw out the one that needs the block.",
    (NEWEST, "newest = request"),
    why="Then an old one may be stopped again and again by those that came later.",
)
wrong_admission(
    "all_behind_go",
    "You throw out all that came after it.",
    (THROWN_OUT, "                while self.running[-1] is not request:\n"
     "                    self.preempt(self.running[-1])\n"
     "                    newest = None\n"
     "                if newest is request:\n"
     "                    self.preempt(request)\n"
     "                    return False\n"),
    why="One block is enough for now, and each of them has computed for nothing.",
)  # fmt: skip
wrong_admission(
    "nobody_goes",
    "You throw nobody out.",
    (THROWN_OUT, "                return False\n"),
    (f"                {NEWEST}\n", ""),
    why="If all of them wait for a block, none of them ever ends.",
)
wrong_admission(
    "room_is_not_taken",
    "You throw somebody out, and do not take the block.",
    (THROWN_OUT, THROWN_OUT + "                return True\n"),
    why="The request still has no slot for its newest token: extend its table once more.",
)
wrong_admission(
    "stands_still_with_its_blocks",
    "You say that there is no room for the newest, and do not throw it out.",
    (THROWN_OUT, "                if newest is request:\n"
     "                    return False\n"
     "                self.preempt(newest)\n"),
    why="It would stand still and keep its blocks, and whoever comes in could take what it waits for.",
)  # fmt: skip
wrong_admission(
    "thrown_out_and_computes",
    "You say that a request has room which you have thrown out.",
    ("                    return False\n", "                    return True\n"),
    why="It has no blocks any more, and computes nothing in this step.",
)
wrong_admission(
    "keeps_the_watermark_from_the_running",
    "You keep the watermark free from those that run.",
    (GROWS, "                if len(request.tokens) > len(request.table.blocks) * self.pool.block_size:\n"
     "                    if self.pool.free_blocks <= self.reserve:\n"
     '                        raise OutOfBlocks("the watermark")\n' + GROWS),
    why="It is kept free for them.",
)  # fmt: skip

# How a table grows

wrong_admission(
    "grows_every_step",
    "You give a request one slot more at each step.",
    (GROWS, "                self.pool.extend(request.table, request.table.length + 1)\n"),
    why="In the middle of its prompt it has slots for all of it. It needs as many as it has known tokens.",
)
wrong_admission(
    "a_slot_ahead",
    "You give a running request a slot for a token that nobody knows yet.",
    (GROWS, "                self.pool.extend(request.table, len(request.tokens) + 1)\n"),
    why="The next token is computed in the next step, and may have its slot then: somebody else needs it now.",
)
wrong_admission(
    "comes_in_with_a_slot_ahead",
    "You let a request in with a slot for a token that nobody knows yet.",
    (ALLOCATE, "self.pool.allocate(len(request.tokens) + 1, hit, reserve=reserve)"),
    why="It needs slots for its known tokens. For what comes next there is the watermark.",
)
wrong_admission(
    "room_for_the_prompt",
    "You ask for slots for the prompt alone.",
    (ALLOCATE, "self.pool.allocate(max(len(request.prompt), hit.tokens), hit, reserve=reserve)"),
    why="One that was thrown out knows some of its answer, too, and computes it again.",
)

# What it means to be thrown out

wrong_admission(
    "keeps_its_blocks",
    "You leave the blocks to a request that was thrown out.",
    (FREED, ""),
    why="Then nothing is won, and they are lost: it takes others when it comes back.",
)
wrong_admission(
    "still_runs",
    "You throw a request out, and leave it among those that run.",
    ("        self.running.remove(request)\n" + FREED, FREED),
    why="The next block is sought at the last of running. That is this one, once more, and it has none.",
)
wrong_admission(
    "keeps_what_was_computed",
    "You leave what was computed at its number.",
    (NOT_COMPUTED, ""),
    why="Computed are tokens whose keys and values are in its blocks, and it has none.",
)
wrong_admission(
    "forgets_its_answer",
    "You throw away what it has generated.",
    (NOT_COMPUTED, NOT_COMPUTED + "        del request.tokens[len(request.prompt) :]\n"),
    why="These tokens are known, and may have been sent. They are computed again, and not generated again.",
)
wrong_admission(
    "answer_becomes_prompt",
    "You make its answer a part of its prompt.",
    (NOT_COMPUTED, NOT_COMPUTED + "        request.prompt = tuple(request.tokens)\n"),
    why="It is computed like a prompt, but it is still the answer: it is counted, and sent to the user.",
)
wrong_admission(
    "one_token_is_lost",
    "You take back the newest token.",
    (NOT_COMPUTED, NOT_COMPUTED + "        request.tokens.pop()\n"),
    why="It is not computed, but it is known.",
)
wrong_admission(
    "to_the_end",
    "You put it at the end of the queue.",
    (BACK, "self.waiting.append(request)"),
    why="All that came after it would pass it, and its wait has no bound.",
)

# Who comes in

wrong_admission(
    "comes_in_at_once",
    "You let somebody in, in a step that has thrown somebody out.",
    (NOBODY, "if not self.waiting:"),
    why="Those that run are short of blocks: whoever comes in now is the next to go. preempt notes whom it throws "
    "out, and admit looks whether there is anybody.",
)
wrong_admission(
    "whoever_fits",
    "You let others pass the first one, where there is no room for it.",
    (FIRST, "request = next((each for each in self.waiting if self.pool.blocks_for(len(each.tokens)) <= "
     "self.pool.free_blocks), self.waiting[0])"),
    why="While small ones keep coming, a large one waits for ever.",
)  # fmt: skip
wrong_admission(
    "shortest_first",
    "You let the shortest in first.",
    (FIRST, "request = min(self.waiting, key=lambda each: len(each.tokens))"),
    why="The mean wait is shorter, and the longest has no bound. First come, first served.",
)
wrong_admission(
    "last_come_first",
    "You let the last one in first.",
    (FIRST, "request = self.waiting[-1]"),
    why="First come, first served.",
)
wrong_admission(
    "no_watermark",
    "You do not keep the watermark free.",
    (RESERVE, "reserve = 0"),
    why="Whoever enters by the last block is thrown out by its neighbour's next token.",
)
wrong_admission(
    "watermark_alone",
    "You keep the watermark free for a request that is alone, too.",
    (RESERVE, "reserve = self.reserve"),
    why="Nobody else needs it, and a request of nearly all blocks would wait for ever.",
)
wrong_admission(
    "watermark_beside_two",
    "You keep the watermark free only beside two others.",
    (RESERVE, "reserve = self.reserve if len(self.running) > 1 else 0"),
    why="One neighbour is enough to need a block.",
)
wrong_admission(
    "a_block_for_each_neighbour",
    "You keep no more blocks free than others run.",
    (RESERVE, "reserve = min(self.reserve, len(self.running))"),
    why="The watermark is self.reserve, however many they are: it is to last for several steps.",
)
wrong_admission(
    "watermark_alone_is_enough",
    "You ask whether the watermark is free, and not whether it still is when the request has come in.",
    (
        RESERVE,
        "reserve = 0\n        if self.running and self.pool.free_blocks < self.reserve:\n            return None",
    ),
    why="Its own blocks come on top: so many must stay free beside them.",
)
wrong_admission(
    "newest_at_the_front",
    "You put whoever comes in at the front of those that run.",
    (LEAVES, LEAVES.replace("append(request)", "insert(0, request)")),
    why="The list is in the order of admission: its last one is the first to go.",
)
wrong_admission(
    "vanishes",
    "You take a request from those that wait, and do not put it back where it has no room.",
    (FIRST, "request = self.waiting.pop(0)"),
    (LEAVES, "        self.running.append(request)\n"),
    why="It is in neither list then, and nobody will ever look at it again. None means that nothing has changed.",
)
wrong_admission(
    "still_waits",
    "Whoever comes in is still among those that wait.",
    (LEAVES, "        self.running.append(request)\n"),
    why="It would come in again, beside itself.",
)

# What is found

wrong_admission(
    "nothing_is_found",
    "You compute everything, whatever is in the cache.",
    (MATCH, "hit = None"),
    (HIT, "request.computed = 0"),
    why="Requests that begin alike share their first blocks, and one that was thrown out finds its own.",
)
wrong_admission(
    "found_and_computed",
    "You take the blocks that were found, and compute them again.",
    (HIT, "request.computed = 0"),
    why="Their tokens are computed: the request begins after them. To write them again is to write what others read.",
)
wrong_admission(
    "found_and_not_taken",
    "You count what was found as computed, and take other blocks.",
    (ALLOCATE, "self.pool.allocate(len(request.tokens), reserve=reserve)"),
    why="The keys and values are in the blocks that were found: allocate shares them if it is given the hit.",
)
wrong_admission(
    "full_hit",
    "You let a hit reach the last token, and leave nothing to compute.",
    (MATCH, "hit = self.pool.match([*request.tokens, 0])"),
    why="The next token's logits come of a step of the model, and it needs at least one token.",
)
wrong_admission(
    "prompt_alone_is_found",
    "You look for the prompt alone.",
    (MATCH, "hit = self.pool.match(request.prompt)"),
    why="One that was thrown out has blocks of its answer in the cache, too.",
)
