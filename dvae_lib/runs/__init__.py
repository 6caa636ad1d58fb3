"""What a run needs of the machine and the disk: device, random numbers, captured step, reports, and its file.

Nothing here knows what is trained. Of the book's own subject are only the recorder and the captured step in `capture`.
"""
