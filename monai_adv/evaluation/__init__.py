"""Evaluation: how robust is a model, honestly?"""
