package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"
)

const (
	formTable = "table"
	formJSON  = "json"
	formYAML  = "yaml"
)

// checkOutput refuses an unknown form before anything is done.
func (a *app) checkOutput(cmd *cobra.Command) error {
	switch a.output {
	case formTable, formJSON, formYAML:
		return nil
	}
	return usagef(cmd, "output %s: table, json or yaml", quote(a.output))
}

// people says whether the answer is for a person to read.
func (a *app) people() bool { return a.output == formTable }

// emit prints an answer: v as JSON or YAML, or whatever human prints.
func (a *app) emit(v any, human func(w io.Writer)) error {
	if a.people() {
		// Written at once: a reader that has gone away shows as an error here.
		var b bytes.Buffer
		human(&b)
		_, err := a.Stdout.Write(b.Bytes())
		return err
	}
	b, err := toJSON(v)
	if err != nil {
		return err
	}
	if a.output == formYAML {
		if b, err = yaml.JSONToYAML(b); err != nil {
			return fmt.Errorf("print as yaml: %w", err)
		}
	}
	_, err = a.Stdout.Write(b)
	return err
}

// toJSON is the stable, indented JSON of a message, a slice of messages, or a
// value with JSON tags. protojson varies its blanks on purpose; indenting it
// anew makes them the same always.
func toJSON(v any) ([]byte, error) {
	var raw []byte
	var err error
	switch v := v.(type) {
	case proto.Message:
		raw, err = messageJSON(v)
	case []proto.Message:
		parts := make([]json.RawMessage, 0, len(v))
		for _, m := range v {
			part, err := messageJSON(m)
			if err != nil {
				return nil, err
			}
			parts = append(parts, part)
		}
		raw, err = json.Marshal(parts)
	default:
		raw, err = json.Marshal(v)
	}
	if err != nil {
		return nil, fmt.Errorf("print as json: %w", err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("print as json: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func messageJSON(m proto.Message) ([]byte, error) {
	return protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
}

// messages makes a list for emit.
func messages[M proto.Message](list []M) []proto.Message {
	out := make([]proto.Message, len(list))
	for i, m := range list {
		out[i] = m
	}
	return out
}

// printTable prints rows under headings. A heading that begins with '>' is of
// a column of numbers.
func printTable(w io.Writer, heads []string, rows [][]string) {
	t := table.NewWriter()
	t.SetStyle(plain)
	var cfg []table.ColumnConfig
	head := make(table.Row, len(heads))
	for i, h := range heads {
		name, right := strings.CutPrefix(h, ">")
		if right {
			cfg = append(cfg, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
		head[i] = name
	}
	if heads != nil {
		t.AppendHeader(head)
	}
	t.SetColumnConfigs(cfg)
	for _, r := range rows {
		row := make(table.Row, len(r))
		for i, c := range r {
			row[i] = clean(c)
		}
		t.AppendRow(row)
	}
	t.SuppressTrailingSpaces()
	if s := t.Render(); s != "" {
		fmt.Fprintln(w, s)
	}
}

// plain has no lines: two blanks part the columns, so that cut and awk work.
var plain = table.Style{
	Name:    "plain",
	Box:     table.BoxStyle{PaddingRight: "  ", PageSeparator: "\n"},
	Format:  table.FormatOptions{Header: text.FormatDefault, Row: text.FormatDefault},
	Options: table.OptionsNoBordersAndSeparators,
}

// field is one line of a detailed view.
type field struct{ name, value string }

// printFields prints a detailed view; fields without a value are left out.
func printFields(w io.Writer, fields []field) {
	var rows [][]string
	for _, f := range fields {
		if f.value != "" {
			rows = append(rows, []string{f.name + ":", f.value})
		}
	}
	printTable(w, nil, rows)
}

// clean replaces control characters, which could move a terminal's cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}

// when prints a time: in UTC, to the second.
func when(t *timestamppb.Timestamp) string {
	if !t.IsValid() || t.AsTime().Unix() == 0 {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// labelText prints labels in the order of their keys.
func labelText(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for k, v := range labels {
		parts = append(parts, k+"="+v)
	}
	sort.Strings(parts)
	return strings.Join(parts, ",")
}

// plural counts things.
func plural[N int | int64 | uint32](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// dash stands for nothing in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
