class SweepCallback:
    pass
