"""A right answer to exercise (b): prefixes that are shared, found by their hashes and compared by their tokens."""

from llmsys.cache import Copy, PrefixHit
from llmsys.cache.block_hashes import Prefix
from llmsys.lessons.lesson_08_paged_kv_cache.sharing_parts import SharingParts


class SharingPool(SharingParts):
    """A pool whose blocks stand in several tables where their content is the same."""

    def find(self, before, tokens):
        """The Prefix of these tokens after `before` (a Prefix, or None): the known one, or a new one."""
        hashed = self.hash_block(before.hash if before else b"", tokens)
        for prefix in self.by_hash.get(hashed, []):
            if prefix.before is before and prefix.tokens == tokens:
                return prefix
        return Prefix(before, tokens, hashed)

    def match(self, tokens):
        """The longest prefix of `tokens` that is there, in whole blocks and short of the last token."""
        prefixes, before = [], None
        for n in range((len(tokens) - 1) // self.block_size):
            before = self.find(before, self.tokens_of(tokens, n))
            if not before.blocks:
                break
            prefixes.append(before)
        blocks = tuple(next(iter(prefix.blocks)) for prefix in prefixes)
        return PrefixHit(blocks, len(blocks) * self.block_size, prefixes=tuple(prefixes))

    def register(self, table, tokens, computed):
        """Lets others hit the blocks that the first `computed` tokens fill."""
        self.check_table(table)
        for n in range(len(table.prefixes), computed // self.block_size):
            prefix = self.find(table.prefixes[-1] if table.prefixes else None, self.tokens_of(tokens, n))
            self.hold(table.blocks[n], prefix)
            table.prefixes.append(prefix)

    def take(self):
        """A free block, with one reference: a blank one, else the least recently used cached one."""
        if self.blank:
            block = self.blank.pop()
        else:
            block, _ = self.cached.popitem(last=False)
            self.forget(block)
        self.references[block] = 1
        return block

    def share(self, blocks):
        """One more reference for each of these."""
        for block in blocks:
            if self.references[block] == 0:
                del self.cached[block]
            self.references[block] += 1

    def release(self, blocks):
        """One reference less for each of these, a table's last ones."""
        for block in blocks:
            self.references[block] -= 1
        unused = [block for block in blocks if self.references[block] == 0]
        self.blank += [block for block in unused if block not in self.held]
        for block in reversed(unused):
            if block in self.held:
                self.cached[block] = None

    def allocate(self, length, hit=None):
        """A new table for `length` tokens that begins with the blocks of the hit."""
        hit = hit or PrefixHit()
        new = self.blocks_for(length) - len(hit.blocks)
        self.check_room(new + sum(self.references[block] == 0 for block in hit.blocks))
        self.share(hit.blocks)
        return self.new_table([*hit.blocks, *(self.take() for _ in range(new))], length, hit.prefixes)

    def fork(self, table):
        """A second table with the same blocks."""
        self.check_table(table)
        self.share(table.blocks)
        return self.new_table(list(table.blocks), table.length, table.prefixes)

    def extend(self, table, length):
        """Slots for `length` tokens in all; returns the copies that are to be made first."""
        self.check_table(table, length)
        into_last = length > table.length and table.length % self.block_size > 0
        replace = into_last and self.references[table.blocks[-1]] > 1
        new = self.blocks_for(length) - len(table.blocks)
        self.check_room(new + replace)
        copies = []
        if replace:
            copies.append(Copy(table.blocks[-1], self.take()))
            self.release([table.blocks[-1]])
            table.blocks[-1] = copies[0].target
        table.blocks += [self.take() for _ in range(new)]
        table.length = length
        return copies
