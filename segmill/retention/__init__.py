"""What of a workspace and its stores stays, what is deleted and when: the plan, then the carrying out."""
