"""What int8 costs, and which operator of a plan costs it."""
