// Package cli is the command line of Moraine. It reads arguments, calls the
// agent through agent/client, and prints tables for people or JSON and YAML
// for scripts. What needs no agent (drive check, replica export) or is the
// agent (agent, plugin serve, holder) comes in as functions of Deps.
//
// Invariants:
//
//  1. Standard output has the answer and nothing else; errors, questions and
//     progress go to standard error.
//  2. The exit code tells the kind of failure (moraine help exit-codes).
//  3. JSON is that of the API (protojson, all fields present), a list is an
//     array, and what may not end (events --follow) is one object per line.
//  4. Nothing that cannot be undone is done on a terminal without a question,
//     unless --yes is given.
//  5. Text of others (labels, messages) reaches a terminal without control
//     characters.
//
// Goroutines: one per operation whose progress is shown (owner: the command,
// which waits for it).
package cli
