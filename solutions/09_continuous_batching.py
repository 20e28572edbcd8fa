# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: llmsys
#     language: python
#     name: llmsys
# ---

# %% [markdown]
# ## Exercise (a): the scheduler's step (35 minutes)
#
# Write what decides over a step: who computes how many tokens, whose next token is wanted, and what becomes of the result.
# Take the requests that run in the order in which they were admitted, the oldest first; then let others in, as long as
# there are tokens left in the step, and places. Do you see why a decode never waits for a prompt in that order? Who can
# have more than one token left?
#
# Requests come and go, blocks are found and taken, what happens is written down: all of that is given, in
# `SchedulerParts`. So is what exercise (b) will ask for: whether there is room.

# %% tags=["exercise"] exercise="09.steps"
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import SchedulerParts


class Steps(SchedulerParts):
    """Computed catches up with known.

    SchedulerParts has these:

    self.max_tokens_per_step    tokens of a step, at most
    self.max_sequences          requests that run side by side, at most; never more than max_tokens_per_step
    self.running                a list of those that run, the oldest first. Whoever ends is taken out of it for you
    self.make_room(request)     asks for slots for all that is known of a running request. True if it has them; if False,
                                it computes nothing in this step
    self.admit()                lets the first of those that wait in: it is the last of self.running then, has slots for
                                all that is known of it, and is returned. None where nobody waits, or there is no room.
                                It does not look at max_sequences
    Of a request:
    request.tokens              a list: known, prompt and answer
    request.computed            an int: how many of them are computed. When it is let in, some may have been found
    """

    def share_out(self):
        """Who computes how many tokens in the next step: a list of pairs (request, n), with n at least 1.

        Those that run come first, in their order, then those that are let in. Each gets as many as it has left to
        compute, or as many as the step has left.
        """
        ### BEGIN SOLUTION
        left, shares = self.max_tokens_per_step, []
        for request in tuple(self.running):  # make_room may throw others out of it
            n = min(len(request.tokens) - request.computed, left)
            if self.make_room(request):
                shares.append((request, n))
                left -= n
        while left and len(self.running) < self.max_sequences:
            request = self.admit()
            if request is None:
                break
            n = min(len(request.tokens) - request.computed, left)
            shares.append((request, n))
            left -= n
        return shares
        ### END SOLUTION

    def logits(self, request, n):
        """1 if the request's next token is wanted after these n tokens, else 0. Asked before they are computed."""
        ### BEGIN SOLUTION
        return int(request.computed + n == len(request.tokens))
        ### END SOLUTION

    def take_in(self, request, n, said):
        """The step is done: n tokens of this request were computed. `said` is a list of its next token, or empty."""
        ### BEGIN SOLUTION
        request.computed += n
        request.tokens += said  # known from now on, and not computed
        ### END SOLUTION


# %% tags=["check"] exercise="09.steps"
check("09.steps", Steps)

# %% [markdown]
# In the real engine: it takes a scheduler of your own, and everything else stays. Three questions in steps of at most 24
# tokens, and one after the other:

# %% tags=["claim"]
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import GivenSteps

questions = ["Name a colour.", "What is 2 + 2?", "Why is the sky blue? Answer in one sentence, please."]
answers_of = SamplingParams(max_tokens=6)
engine = Engine(
    model, scheduler=mine("Steps", default=GivenSteps), num_blocks=60, max_tokens_per_step=24, max_sequences=3
)
together = engine.generate(questions, answers_of, progress=False)
for step in read(engine.events)[:5]:
    print(f"step {step.number}:", {part.request: part.tokens for part in step.parts}, f"{step.tokens} tokens")
alone = [generate(model, each, max_new_tokens=6) for each in questions]
same = [each.answers[0].tokens == one.tokens for each, one in zip(together, alone, strict=True)]
print(f"the same answers as alone: {sum(same)} of {len(same)}, in {engine.metrics.totals.steps} steps")

# %% [markdown]
# ## Exercise (b): admission and preemption (40 minutes)
#
# Three methods: room for one that runs, if need be from others; what it means to be thrown out; and who comes in. The pool
# is the library's, with the methods of lesson 08: it finds prefixes, and says `OutOfBlocks` where it has too little, with
# nothing changed. Steps are shared out for you as in exercise (a).

# %% tags=["exercise"] exercise="09.admission"
from llmsys.cache import OutOfBlocks
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import SchedulerParts


class Admission(SchedulerParts):
    """Who has blocks.

    SchedulerParts has these, and the three lists are yours to change:

    self.waiting      a list of requests, first come first; who was preempted is among them again
    self.running      a list of requests, in the order in which they were admitted
    self.preempted    a list of those that this step has preempted. It is emptied before each step
    self.reserve      the watermark, in blocks
    self.pool         a BlockPool:
        hit = pool.match(tokens)                 the longest prefix that is there: hit.tokens of them, fewer than all
        table = pool.allocate(length, hit, reserve=0)   slots for `length` tokens, the hit's among them. OutOfBlocks where
                                                 fewer than `reserve` blocks would stay free
        pool.extend(table, length)               slots for `length` tokens in all. OutOfBlocks where it has too few
        pool.free(table)                         its blocks are free; what is in them can be hit until they are needed
    Of a request:
    request.tokens    a list: known, prompt and answer
    request.computed  an int: how many of them are in its blocks
    request.table     while it runs, its table

    Before each step, make_room is called for those that run, the oldest first, and then admit, again and again, as long
    as somebody came in, and the step has tokens and places left.
    """

    def make_room(self, request):
        """True if the request has slots for all its known tokens now, for which others may have been preempted: the one
        that was admitted last, and again. False if that was the request itself.
        """
        if request not in self.running:
            return False  # an older one has thrown it out in this step
        ### BEGIN SOLUTION
        while True:
            try:
                self.pool.extend(request.table, len(request.tokens))
                return True
            except OutOfBlocks:
                newest = self.running[-1]
                self.preempt(newest)
                if newest is request:
                    return False
        ### END SOLUTION

    def preempt(self, request):
        """Throws a running request out. It waits again, in its old place: before all that came after it."""
        ### BEGIN SOLUTION
        self.running.remove(request)
        self.pool.free(request.table)
        request.computed = 0  # its tokens stay: they are one long prompt now
        self.waiting.insert(0, request)  # whoever runs came before all that wait
        self.preempted.append(request)
        ### END SOLUTION

    def admit(self):
        """Lets the first of those that wait in, with slots for all its known tokens, and returns it.

        None, and nothing has changed, where nobody waits, where there is no room for it, or where this step has
        preempted anybody. Beside others it only comes in if self.reserve blocks stay free; alone, it may have them all.
        """
        ### BEGIN SOLUTION
        if self.preempted or not self.waiting:
            return None
        request = self.waiting[0]
        hit = self.pool.match(request.tokens)
        reserve = self.reserve if self.running else 0
        try:
            request.table = self.pool.allocate(len(request.tokens), hit, reserve=reserve)
        except OutOfBlocks:
            return None
        request.computed = hit.tokens
        self.waiting.remove(request)
        self.running.append(request)
        return request
        ### END SOLUTION


# %% tags=["check"] exercise="09.admission"
check("09.admission", Admission)

# %% [markdown]
# Both together are a scheduler. In the real engine, with blocks of 4 tokens, and hardly enough of them for two of three
# conversations:

# %% tags=["claim"]
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import GivenAdmission, GivenSteps


class Mine(mine("Steps", default=GivenSteps), mine("Admission", default=GivenAdmission)):
    """The scheduler of both exercises."""


counting = [f"Count from {n} to {n + 20}." for n in range(3)]
engine = Engine(model, scheduler=Mine, num_blocks=22, block_size=4, max_tokens_per_step=64, max_sequences=3)
together = engine.generate(counting, SamplingParams(max_tokens=6), progress=False)
for step in read(engine.events):
    if step.admitted or step.preempted:
        print(f"step {step.number}: in {step.admitted}, out {step.preempted}, {step.blocks_used} of {step.blocks} blocks")
alone = [generate(model, each, max_new_tokens=6) for each in counting]
same = [each.answers[0].tokens == one.tokens for each, one in zip(together, alone, strict=True)]
print(f"the same answers as alone: {sum(same)} of {len(same)}")
