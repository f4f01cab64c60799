"""Colours that people with any colour vision tell apart (Okabe and Ito), and that keep their order in grey."""

FRONT = "#0072B2"
BEST = "#D55E00"
BASELINE = "#000000"
DOMINATED = "#8C8C8C"
INFEASIBLE = "#CC79A7"
SHARES = "Cividis"
