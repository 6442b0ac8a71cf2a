package config

import (
	"fmt"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// place is a position in a file, or a flag, or nowhere (a default).
type place struct {
	file         string // or the flag's name
	order        int    // of the file among those loaded
	line, column int    // from 1; 0 for flags
}

func (p place) String() string {
	switch {
	case p.file == "":
		return "default"
	case p.line == 0:
		return p.file
	}
	return fmt.Sprintf("%s:%d:%d", p.file, p.line, p.column)
}

// Diagnostic is one mistake.
type Diagnostic struct {
	// File, Line and Column (from 1, in characters) say where. For a flag File
	// is its name and Line is 0; for a default, or for a file that cannot be
	// read at all, Line is 0 too.
	File         string
	Line, Column int

	// Problem says what is wrong and what would be right, in one line.
	Problem string

	order int
}

// String prints the mistake with its place in front.
func (d Diagnostic) String() string {
	at := place{file: d.File, line: d.Line, column: d.Column}
	if d.File == "" {
		return d.Problem
	}
	return at.String() + ": " + d.Problem
}

// Diagnostics are all mistakes of a configuration, in order of file and line.
type Diagnostics []Diagnostic

// String prints one mistake per line.
func (ds Diagnostics) String() string {
	lines := make([]string, len(ds))
	for i, d := range ds {
		lines[i] = d.String()
	}
	return strings.Join(lines, "\n")
}

// Err returns nil when there is no mistake, else an error of class
// InvalidArgument that prints as String does.
func (ds Diagnostics) Err() error {
	if len(ds) == 0 {
		return nil
	}
	return diagnosticsError{ds}
}

type diagnosticsError struct{ ds Diagnostics }

func (e diagnosticsError) Error() string { return e.ds.String() }
func (e diagnosticsError) Unwrap() error { return errdefs.ErrInvalidArgument }

// report collects mistakes.
type report struct {
	ds      Diagnostics
	dropped int
}

func (r *report) add(at place, format string, args ...any) {
	if len(r.ds) >= diagnosticsMax {
		r.dropped++
		return
	}
	r.ds = append(r.ds, Diagnostic{
		File: at.file, Line: at.line, Column: at.column, order: at.order,
		Problem: fmt.Sprintf(format, args...),
	})
}

// done returns the mistakes in order of their places.
func (r *report) done() Diagnostics {
	sort.SliceStable(r.ds, func(i, j int) bool {
		a, b := r.ds[i], r.ds[j]
		if a.order != b.order {
			return a.order < b.order
		}
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		if a.Column != b.Column {
			return a.Column < b.Column
		}
		return a.Problem < b.Problem
	})
	if r.dropped > 0 {
		r.ds = append(r.ds, Diagnostic{Problem: fmt.Sprintf("and %d more mistakes", r.dropped)})
	}
	return r.ds
}

// source is a file that is being read.
type source struct {
	name  string
	order int
}

func (s source) at(r hcl.Range) place {
	return place{file: s.name, order: s.order, line: r.Start.Line, column: r.Start.Column}
}

// syntax adds what the HCL parser found.
func (r *report) syntax(s source, ds hcl.Diagnostics) {
	for _, d := range ds {
		at := place{file: s.name, order: s.order}
		if d.Subject != nil {
			at = s.at(*d.Subject)
		}
		text := lowerFirst(strings.TrimSuffix(d.Summary, "."))
		if d.Detail != "" {
			text += ": " + lowerFirst(strings.TrimSuffix(oneLine(d.Detail), "."))
		}
		r.add(at, "%s", text)
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func lowerFirst(s string) string {
	if len(s) < 2 || s[1] >= 'A' && s[1] <= 'Z' {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
