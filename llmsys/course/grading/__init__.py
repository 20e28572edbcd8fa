"""Grading: each exercise in a process of its own, of which nothing is believed.

    submission     which cells of a notebook answer which exercise
    sandbox        a learner's process, from outside: started, spoken to, killed
    worker         the same process, from inside
    remote         the runner that calls the learner's function over there
    grade          an exercise, a notebook, a workspace, a class
    report         what came of it: table, JSON, JUnit XML, CSV
    interpreted    a kernel that passed on a GPU, once more where its memory is watched
"""
