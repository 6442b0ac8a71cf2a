// Package lint holds the rules about the source tree that a compiler does not
// know: which folder may import what, that packages explain themselves, that
// documents name files that exist, that every decoder is fuzzed. Each rule is
// an ordinary test with its reason beside it; `make check` runs them.
package lint
