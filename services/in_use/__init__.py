"""Conversations in use: what `services.conversations` is made of, a module for each part.

A conversation in use has two sides. The aggregate decides, and runs ahead: a command is decided
on the state that the commands before it will have made, while those are still on their way to the
disk. The view is what was stored, and follows: it is folded when the store has said so, and only
views are shown to anyone.

From the bottom up, each knows only those before it: `attempt` (one command on its way),
`conversation` (one conversation in memory, its two sides), `cache` (all of them, within so many
bytes), `loader` (how one gets there from the ledger); on these stand, beside each other, `decider`
(commands: decided, appended, answered) and `views` (what readers are shown).
"""
