"""A right answer to exercise (a): computed catches up with known, as far as a step's tokens go."""

from llmsys.lessons.lesson_09_continuous_batching.bookkeeping import Bookkeeping


class RightSteps(Bookkeeping):
    """Who computes how many tokens, of whom the next token is wanted, and what becomes of it."""

    def share_out(self):
        """The running requests in their order, then those that are let in: (request, n) each."""
        left, shares = self.max_tokens_per_step, []
        for request in tuple(self.running):
            n = min(len(request.tokens) - request.computed, left)
            if self.make_room(request):
                shares.append((request, n))
                left -= n
        while left > 0 and len(self.running) < self.max_sequences:
            request = self.admit()
            if request is None:
                break
            n = min(len(request.tokens) - request.computed, left)
            shares.append((request, n))
            left -= n
        return shares

    def logits(self, request, n):
        """1 where nothing known is left to compute after these n tokens."""
        return int(request.computed + n == len(request.tokens))

    def take_in(self, request, n, said):
        """n more are computed, and what was said is known."""
        request.computed += n
        request.tokens += said
