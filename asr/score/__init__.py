"""Scoring: word errors (wer), their report (report), transcript files (transcripts), delays (latency) and
pictures (picture).

Nothing is imported here: each module brings its own library (jiwer, matplotlib) when it is asked for.
"""
