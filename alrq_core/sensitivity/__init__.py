"""What bits and ranks of each matrix are predicted to cost and to win, before any search."""
