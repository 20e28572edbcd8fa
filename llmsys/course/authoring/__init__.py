"""For those who write lessons.

    new                 the files of a new lesson, from the templates beside it
    build               solutions/NN_slug.py becomes the executed solution and the learner's lesson
    execute             a solution is run in a fresh process
    lint                is a lesson's form as it should be?
    exercise_rules      the rules about what the reader does, for the lint
    text_rules          the rules about what the reader reads, for the lint
    numbers_in_prose    numbers that the text claims, for the lint
    alt_texts           pictures, and their words for those who do not see them, for the lint
    self_test           are the checks any good? Stubs, solutions, mistakes, mutations
    mutations           small changes of a right answer that ought to make it wrong, for the self-test
    option_pairs        options that a mutation forgets where another one is set
    names_in_texts      names that a check says to a learner, for the self-test
    readme_pictures     the two pictures that the README shows
    measured_figures    what MEASURED.md and the README say of serving
    nbgrader_export     a lesson as an nbgrader assignment
"""
