"""What a conversation is: values, commands, events, rules. Pure; imports nothing of ours."""
