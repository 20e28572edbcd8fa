"""Answers to the exercises of lesson 09 that have no name among its mistakes: right ones by other ways (`RIGHT_STEPS`,
`RIGHT_ADMISSION`), and wrong ones (`WRONG_STEPS`, `WRONG_ADMISSION`).
"""

from bisect import insort

from llmsys.cache import OutOfBlocks
from llmsys.course.checking.mistakes import edited
from llmsys.lessons.lesson_09_continuous_batching.right_admission import RightAdmission
from llmsys.lessons.lesson_09_continuous_batching.right_steps import RightSteps
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import SchedulerParts
from llmsys.serving import Request, Scheduler

# Right answers to (a), by other ways


class DecodesFirst(SchedulerParts):
    """Two loops over those that run, and shares in a dict."""

    def share_out(self):
        self.left, self.shares = self.max_tokens_per_step, {}
        for decoding in (True, False):
            for request in self.running[:]:
                if (request.remaining == 1) == decoding and self.make_room(request):
                    self.give(request)
        while self.left >= 1 and len(self.running) != self.max_sequences and (request := self.admit()):
            self.give(request)
        return list(self.shares.items())

    def give(self, request):
        n = request.remaining if request.remaining < self.left else self.left
        if n:
            self.shares[request] = n
            self.left -= n

    def logits(self, request, n):
        return request.remaining == n

    def take_in(self, request, n, said):
        request.computed = request.computed + n
        for token in said:
            request.tokens.append(token)


class OneLoop(SchedulerParts):
    """Those that run and those that are let in by one generator, on the list itself."""

    def everybody(self):
        yield from (request for request in self.running if self.make_room(request))
        while self.left and len(self.running) < self.max_sequences:
            request = self.admit()
            if request is None:
                return
            yield request

    def share_out(self):
        self.left, shares = self.max_tokens_per_step, []
        for request in self.everybody():
            n = min(self.left, len(request.tokens) - request.computed)
            shares.append([request, n])
            self.left -= n
        return shares

    def logits(self, request, n):
        return 0 if request.computed + n < len(request.tokens) else 1

    def take_in(self, request, n, said):
        request.tokens = request.tokens + said
        request.computed += n


class StopsAtNoRoom(SchedulerParts):
    """Whoever has no room is the newest: nobody is behind it. It has a state of its own."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.steps_seen = 0

    def share_out(self):
        self.steps_seen += 1
        given = []
        for request in list(self.running):
            if not self.make_room(request):
                return given
            given.append((request, self.part(request, given)))
        while sum(n for _, n in given) < self.max_tokens_per_step and len(self.running) < self.max_sequences:
            if (request := self.admit()) is None:
                break
            given.append((request, self.part(request, given)))
        return given

    def part(self, request, given):
        return min(len(request.tokens) - request.computed, self.max_tokens_per_step - sum(n for _, n in given))

    def logits(self, request, n):
        return len(request.tokens[request.computed + n :]) == 0

    def take_in(self, request, n, said):
        request.computed += n
        request.tokens.extend(said)


RIGHT_STEPS = [DecodesFirst, OneLoop, StopsAtNoRoom]

# Right answers to (b), by other ways


class LooksFirst(SchedulerParts):
    """No exception is caught: it counts blocks."""

    def make_room(self, request):
        while request in self.running:
            missing = self.pool.blocks_for(len(request.tokens)) - len(request.table.blocks)
            if missing <= self.pool.free_blocks:
                self.pool.extend(request.table, len(request.tokens))
                return True
            self.preempt(self.running[-1])
        return False

    def preempt(self, request):
        self.pool.free(request.table)
        request.table, request.computed = None, 0
        self.running = [each for each in self.running if each is not request]
        self.waiting = [request, *self.waiting]
        self.preempted = [*self.preempted, request]

    def admit(self):
        if not self.waiting or len(self.preempted) > 0:
            return None
        first, *others = self.waiting
        hit = self.pool.match(first.tokens)
        unused = sum(self.pool.references(block) == 0 for block in hit.blocks)
        needed = self.pool.blocks_for(len(first.tokens)) - len(hit.blocks) + unused
        if needed + (self.reserve if len(self.running) > 0 else 0) > self.pool.free_blocks:
            return None
        first.table = self.pool.allocate(len(first.tokens), hit)
        first.computed = hit.tokens
        self.waiting, self.running = others, [*self.running, first]
        return first


class ByOrder(SchedulerParts):
    """The newest by its place in the order of arrival, and back to that place; one attempt after the other."""

    def make_room(self, request):
        if request not in self.running:
            return False
        try:
            self.pool.extend(request.table, len(request.tokens))
        except OutOfBlocks:
            self.preempt(max(self.running, key=lambda each: each.order))
            return self.make_room(request)
        return True

    def preempt(self, request):
        self.running.remove(request)
        insort(self.waiting, request, key=lambda each: each.order)
        self.preempted += [request]
        self.pool.free(request.table)
        request.computed = 0

    def admit(self):
        if self.preempted:
            return None
        for request in self.waiting:
            found = self.pool.match(list(request.tokens))
            stays_free = 0 if self.running == [] else self.reserve
            try:
                request.table = self.pool.allocate(len(request.tokens), found, reserve=stays_free)
            except OutOfBlocks:
                break
            request.computed = found.tokens
            self.running.append(request)
            del self.waiting[0]
            return request
        return None


RIGHT_ADMISSION = [LooksFirst, ByOrder]

# Wrong answers to (a)


def steps_but(name, *changes):
    return edited(RightSteps, name, *changes)


class CallsTheLibrary(SchedulerParts):
    """The library's own scheduler plans."""

    def share_out(self):
        return [(request, 1) for request in Scheduler(self.pool, policy="stall-free").running]


class CallsWhatIsGiven(SchedulerParts):
    """The right answer is one `super` away."""

    def share_out(self):
        return super().share_out()


class CountsItself(SchedulerParts):
    """What is computed is kept in a dict of its own, of which nobody hears that a request was thrown out."""

    def share_out(self):
        self.done = self.__dict__.get("done", {})
        left, shares = self.max_tokens_per_step, []
        for request in tuple(self.running):
            n = min(len(request.tokens) - self.done[request.id], left)
            if n and self.make_room(request):
                shares.append((request, n))
                left -= n
        while left > 0 and len(self.running) < self.max_sequences and (request := self.admit()):
            self.done.setdefault(request.id, request.computed)
            n = min(len(request.tokens) - self.done[request.id], left)
            if n:
                shares.append((request, n))
                left -= n
        return shares

    def logits(self, request, n):
        return int(self.done[request.id] + n == len(request.tokens))

    def take_in(self, request, n, said):
        self.done[request.id] += n
        request.computed += n
        request.tokens += said


START = "left, shares = self.max_tokens_per_step, []"
CUT = "min(len(request.tokens) - request.computed, left)"
PLACES = "len(self.running) < self.max_sequences"
ROOM = "if self.make_room(request):"
NEW = "            n = min(len(request.tokens) - request.computed, left)\n            shares"
NEW_TAKEN = "            shares.append((request, n))\n            left -= n\n        return"
LOGITS = "request.computed + n == len(request.tokens)"
KNOWN = "request.tokens += said"

NAMED_STEPS = {
    "newest_first": steps_but("from_the_end", ("in tuple(self.running)", "in self.running[::-1]"),
                              (ROOM, "if n > 0 and self.make_room(request):")),
    "long_prompts_first": steps_but("by_what_is_left", ("in tuple(self.running)", "in sorted(self.running, key=lambda "
                                    "each: -each.remaining)"), (ROOM, "if n > 0 and self.make_room(request):")),
    "prompts_say_nothing": steps_but("single_ones_say", (LOGITS, "n == 1"),
                                     (ROOM, "if n >= 1 and self.make_room(request):")),
    "decodes_alone_say": steps_but("only_single_ones", (LOGITS, "n == 1")),
    "computed_is_all_but_one": steps_but("all_but_the_last", ("request.computed += n", "pass"),
                                         (KNOWN, KNOWN + "\n        request.computed = len(request.tokens[:-1])")),
}  # fmt: skip
"""As a reader might write what is called so among the mistakes."""

WRONG_STEPS = [
    CallsTheLibrary, CallsWhatIsGiven, CountsItself,
    steps_but("a_token_is_spared", (START, "left, shares = self.max_tokens_per_step - 1, []")),
    steps_but("a_token_more", (START, "left, shares = self.max_tokens_per_step + 1, []")),
    steps_but("who_waits_has_a_place", (PLACES, "len(self.running) + len(self.waiting) <= self.max_sequences")),
    steps_but("a_token_for_each_place", ("left > 0", "left > self.max_sequences - len(self.running)")),
    steps_but("whole_blocks", (NEW, "            n = len(request.tokens) - request.computed\n            if n > left:\n"
              "                n = max(left // 4 * 4, 1)\n            shares")),
    steps_but("one_prompt_a_step", (NEW_TAKEN, "            shares.append((request, n))\n            left -= n\n"
              "            if n > 1:\n                break\n        return")),
    steps_but("halves", (NEW, "            n = min(len(request.tokens) - request.computed, max(left // 2, 1))\n"
              "            shares")),
    steps_but("never_below_a_half", (NEW, "            n = min(len(request.tokens) - request.computed, left)\n"
              "            n = min(n, max(self.max_tokens_per_step // 2, 1))\n            shares")),
    steps_but("room_for_answers_alone", (ROOM, "if request.num_generated == 0 or self.make_room(request):")),
    steps_but("room_is_asked_for_afterwards", (ROOM, "if True:"), ("        while left > 0", "        for request in "
              "tuple(self.running):\n            self.make_room(request)\n        while left > 0")),
    steps_but("who_came_is_given_twice", ("        return shares\n", "        return shares + shares[-1:]\n")),
    steps_but("hits_are_taken_for_prompts", (NEW, "            n = min(len(request.prompt) - request.computed, left)\n"
              "            shares")),
    steps_but("answers_end_a_step_early", (KNOWN, "request.tokens += said[:1] if said and said[0] else []")),
    steps_but("what_was_said_is_put_in_front", (KNOWN, "request.tokens[len(request.prompt):1] = said")),
    steps_but("logits_of_every_step_that_is_not_full", (LOGITS, "n < self.max_tokens_per_step")),
    steps_but("logits_of_prompts_alone", (LOGITS, "request.computed + n == len(request.prompt) or n == 1")),
    steps_but("one_list_for_all", ("request.computed += n", "request.computed += n\n        shared = "
              "self.__dict__.setdefault('shared', request.tokens)\n        request.tokens = shared")),
    steps_but("computed_is_the_whole_piece", ("request.computed += n", "request.computed = n")),
]  # fmt: skip

# Wrong answers to (b)


def admission_but(name, *changes):
    return edited(RightAdmission, name, *changes)


class CallsWhatIsGivenToo(SchedulerParts):
    """The right answer is one `super` away."""

    def admit(self):
        return super().admit()


class MakesItAnew(SchedulerParts):
    """Who is thrown out becomes another request."""

    def preempt(self, request):
        self.running.remove(request)
        self.pool.free(request.table)
        again = Request(request.id, request.tokens, request.sampling)
        again.order, again.limit = request.order, request.limit
        self.waiting.insert(0, again)
        self.preempted.append(request)


THROWN_OUT = "                self.preempt(newest)\n"
ITSELF = "                if newest is request:\n                    return False\n"
NOT_COMPUTED = "        request.computed = 0\n"
BACK = "self.waiting.insert(0, request)"
NOTED = "self.preempted.append(request)"
FIRST = "request = self.waiting[0]"
MATCH = "hit = self.pool.match(request.tokens)"
RESERVE = "reserve = self.reserve if self.running else 0"
ALLOCATE = "self.pool.allocate(len(request.tokens), hit, reserve=reserve)"

NAMED_ADMISSION = {
    "oldest_goes": admission_but("from_the_front", ("self.running[-1]", "next(iter(self.running))")),
    "least_computed_goes": admission_but("the_cheapest", ("self.running[-1]", "sorted(self.running, key=lambda each: "
                                         "each.computed)[0]")),
    "longest_goes": admission_but("the_longest", ("self.running[-1]", "sorted(self.running, key=lambda each: "
                                  "-len(each.tokens))[0]")),
    "itself_goes": admission_but("whoever_asks", ("self.running[-1]", "request")),
    "a_block_for_each_neighbour": admission_but("by_neighbours", (RESERVE, "reserve = len(self.running) if self.reserve"
                                                " > len(self.running) else self.reserve")),
    "watermark_alone_is_enough": admission_but("asks_before", (RESERVE, "reserve = 0\n        if self.running and not "
                                               "self.pool.free_blocks >= self.reserve:\n            return None")),
    "still_runs": admission_but("is_left_there", ("        self.running.remove(request)\n", "")),
    "vanishes": admission_but("popped", (FIRST, "request = self.waiting.pop(0)"),
                              ("        self.waiting.remove(request)\n", "")),
    "stands_still_with_its_blocks": admission_but("the_newest_never_goes", (THROWN_OUT + ITSELF, "                if "
                                                  "request is newest:\n                    return False\n"
                                                  + THROWN_OUT)),
}  # fmt: skip
"""As a reader might write what is called so among the mistakes."""

WRONG_ADMISSION = [
    CallsTheLibrary, CallsWhatIsGivenToo, MakesItAnew,
    admission_but("two_go_at_once", (THROWN_OUT, THROWN_OUT + "                if self.running[1:] and newest is not "
                  "request and self.running[-1] is not request:\n"
                  "                    self.preempt(self.running[-1])\n")),
    admission_but("the_second_newest_goes", ("self.running[-1]", "self.running[-2:][0]")),
    admission_but("the_one_with_most_blocks_goes", ("newest = self.running[-1]",
                  "newest = max(reversed(self.running), key=lambda each: len(each.table.blocks))")),
    admission_but("keeps_all_but_its_newest", (NOT_COMPUTED, "        request.computed = len(request.tokens) - 1\n")),
    admission_but("newest_token_twice", (NOT_COMPUTED, NOT_COMPUTED + "        request.tokens.append("
                  "request.tokens[-1])\n")),
    admission_but("its_place_by_length", (BACK, BACK + "\n        self.waiting.sort(key=lambda each: "
                  "len(each.tokens))")),
    admission_but("its_blocks_are_forgotten", ("        self.pool.free(request.table)\n",
                  "        for block in request.table.blocks:\n            if self.pool.references(block) == 1 and "
                  "block in self.pool._index:\n                self.pool._index.forget(block)\n"
                  "        self.pool.free(request.table)\n")),
    admission_but("for_ever_closed", (NOTED, "self.closed = True\n        " + NOTED),
                  ("if self.preempted or", "if getattr(self, 'closed', False) and self.running or self.preempted or")),
    admission_but("more_than_the_watermark", (RESERVE, "reserve = self.reserve + 1 if self.running else 0")),
    admission_but("the_watermark_in_tokens", (RESERVE, "reserve = self.reserve // self.pool.block_size if self.running "
                  "else 0")),
    admission_but("the_watermark_for_new_ones", (RESERVE, "reserve = self.reserve if self.running and not "
                  "request.num_generated else 0")),
    admission_but("a_hit_saves_no_room", ("        try:\n            request.table = ",
                  "        if self.pool.blocks_for(len(request.tokens)) + reserve > self.pool.free_blocks:\n"
                  "            return None\n        try:\n            request.table = ")),
    admission_but("a_block_of_a_hit_costs_nothing", (RESERVE, RESERVE + "\n        new = self.pool.blocks_for("
                  "len(request.tokens)) - len(hit.blocks)\n        if new + reserve <= self.pool.free_blocks:\n"
                  "            reserve = 0")),
    admission_but("a_hit_of_its_first_try", (MATCH, "hit = self.__dict__.setdefault('hits', {}).setdefault(request.id, "
                  "self.pool.match(request.tokens))")),
    admission_but("hits_of_new_ones_alone", (MATCH, "hit = self.pool.match(request.tokens if not "
                  "request.num_generated else [])")),
    admission_but("hits_of_old_ones_alone", (MATCH, "hit = self.pool.match(request.tokens if request.num_generated "
                  "else [])")),
    admission_but("room_for_the_whole_answer", (ALLOCATE, "self.pool.allocate(request.limit - 1, hit, "
                  "reserve=reserve)")),
    admission_but("room_for_a_step", (ALLOCATE, "self.pool.allocate(min(len(request.tokens), hit.tokens + "
                  "self.max_tokens_per_step), hit, reserve=reserve)")),
    admission_but("the_second_if_the_first_is_long", (FIRST, "request = min(self.waiting[:2], key=lambda each: "
                  "self.pool.blocks_for(len(each.tokens)) > self.pool.free_blocks)")),
]  # fmt: skip
