"""The tree of labels: its algebra, how classes are grouped, how decisions are measured."""
