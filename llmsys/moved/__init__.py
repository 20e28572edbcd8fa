"""Names from before: modules that have moved, under the names that notebooks, `mine/` and other programs know them by.

A workspace lives longer than the library's layout. Whoever wrote `from llmsys.attention.flash_kernels import …` into a
notebook a year ago finds it today, for `attention`, `models`, `serving` and `course` add the folder of their name in
here to the places where their modules are looked for (`__path__`). A module in these folders says where its content is
now, and puts that module in its own place, so that all its names are there, and are the same objects under both names.

    llmsys/moved/attention/flash_kernels.py     is found as llmsys.attention.flash_kernels, and is flash.kernels

Nothing in the library or in a lesson uses these names (tests/test_structure.py).
"""
