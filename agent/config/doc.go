// Package config reads the agent's configuration: HCL files, folders of them,
// and flags, into plain Go values.
//
//	cfg, diags := config.Load([]string{"/etc/moraine/agent.hcl"}, flags)
//	if len(diags) > 0 { ... every mistake, with file, line, column and what would be right }
//
// What may be written where is one table, keys.go; what holds when nothing is
// written is another, defaults.go. Files are merged in order (those of a folder
// by name): a later attribute replaces an earlier one, backend blocks add up,
// and a block that may be there once is an error when it is there twice.
//
// Invariants
//
//  1. A Config that Load returned without diagnostics is valid: nobody checks
//     it again.
//  2. Every mistake is reported, not the first one only; none is a panic.
//  3. A diagnostic never shows a value that was configured for a plugin or
//     marked as sensitive: it may be a secret.
//  4. Values are literals: no variables, functions or loops, so that reading a
//     file ends soon, whatever it says.
//
// Goroutines: none.
package config
