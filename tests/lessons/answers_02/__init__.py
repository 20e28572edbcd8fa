"""Answers to lesson 02 that have no name among its mistakes: a module an exercise, each with right answers in other
forms, `RIGHT`, and wrong ones, nearly right, `WRONG`. Most of those are edits of the right answers that the lesson's
mistakes are edits of, too.

    kind of mistake                                  for example
    a number that is taken for −∞, or for ∞          begins_at_a_thousand_million_below, no_number_above_a_million
    fewer bits than x has, in one place              terms_in_float32, sums_in_half
    right where e^ neither overflows nor vanishes    maximum_of_the_last_tile, factor_not_below_a_millionth
    a tile of another size than asked for            tiles_of_sixteen, number_of_tiles
    a pass more, over y instead of x                 exponentials_kept_in_y
    what was found for another row, or shape         maximum_of_the_same_shape, one_maximum_over_the_first_dimension
"""
