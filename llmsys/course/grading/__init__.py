"""Grading: each exercise in a process of its own, of which nothing is believed.

    grade          a notebook, a workspace, a class
    one_exercise   from a task to its grade, several at a time
    notebooks      where in a submission they are
    submission     which cells of a notebook answer which exercise
    sandbox        a learner's process, from outside: started, spoken to, killed
    jail           walls around it, where the machine has some
    worker         the same process, from inside; what stands by the learner's code there is in inside/
    remote         the runner that calls the learner's function over there
    report         what came of it: table, JSON, JUnit XML; class_report: of a class, a CSV
    journal        grades as they come, so that an interrupted run goes on
    words          strangers' texts, fit to be shown
    interpreted    a kernel that passed on a GPU, once more where its memory is watched
"""
