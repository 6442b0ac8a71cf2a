// Package event keeps what happened on this node: typed events with a cursor
// that grows for ever, held in memory and in a small file so that they survive
// a restart, and followed by any number of watchers.
//
// Recording never blocks and never fails: events inform, nothing depends on
// them. A watcher that is too slow sees a gap in cursors, not a delay of others.
package event

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Limits: an event is about 300 bytes, so memory and file stay near 1 MiB.
const (
	keptEvents   = 4096
	fileBytesMax = 2 << 20
)

// Log records events and feeds watchers.
type Log struct {
	logger hclog.Logger

	mu        sync.Mutex
	cursor    uint64         // of the last event
	kept      []*apiv1.Event // ascending cursors, at most keptEvents
	file      *os.File       // or nil: memory only
	written   int64          // bytes in file
	rewriteAt int64          // bytes in file at which it is started anew
	path      string
	changed   chan struct{} // closed and replaced at each event
}

// Open reads the events kept at path ("" for memory only). A damaged line is
// skipped: events are no state.
func Open(path string, logger hclog.Logger) (*Log, error) {
	l := &Log{logger: logger, path: path, changed: make(chan struct{})}
	if path == "" {
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if f, err := os.Open(path); err == nil {
		sc := bufio.NewScanner(f)
		sc.Buffer(make([]byte, 64<<10), 1<<20)
		for sc.Scan() {
			ev := &apiv1.Event{}
			if json.Valid(sc.Bytes()) && protojson.Unmarshal(sc.Bytes(), ev) == nil && ev.Cursor > l.cursor {
				l.cursor = ev.Cursor
				l.keep(ev)
			}
		}
		f.Close()
	}
	return l, l.rewrite()
}

func (l *Log) keep(ev *apiv1.Event) {
	if len(l.kept) == keptEvents {
		l.kept = append(l.kept[:0], l.kept[keptEvents/4:]...)
	}
	l.kept = append(l.kept, ev)
}

// rewrite starts the file anew with the events that are kept.
func (l *Log) rewrite() error {
	tmp := l.path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	l.written = 0
	for _, ev := range l.kept {
		b, err := protojson.Marshal(ev)
		if err != nil {
			continue
		}
		n, _ := w.Write(append(b, '\n'))
		l.written += int64(n)
	}
	if err := w.Flush(); err != nil {
		f.Close()
		return err
	}
	if err := os.Rename(tmp, l.path); err != nil {
		f.Close()
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file = f
	l.rewriteAt = max(fileBytesMax, 2*l.written)
	return nil
}

// Record adds an event and logs it: one line per change of state. kv are
// pairs of field name and value.
func (l *Log) Record(severity apiv1.Severity, typ, object, message string, kv ...string) {
	ev := &apiv1.Event{At: timestamppb.New(time.Now()), Type: typ, Severity: severity, Object: object, Message: message}
	args := []any{"object", object}
	for i := 0; i+1 < len(kv); i += 2 {
		if ev.Fields == nil {
			ev.Fields = map[string]string{}
		}
		ev.Fields[kv[i]] = kv[i+1]
		args = append(args, kv[i], kv[i+1])
	}
	line := typ
	if message != "" {
		line += ": " + message
	}
	switch severity {
	case apiv1.Severity_ERROR:
		l.logger.Error(line, args...)
	case apiv1.Severity_WARNING:
		l.logger.Warn(line, args...)
	default:
		l.logger.Info(line, args...)
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	// Wall clock in microseconds keeps cursors growing even when the file was
	// lost with the last events in it.
	l.cursor = max(l.cursor+1, uint64(ev.At.AsTime().UnixMicro()))
	ev.Cursor = l.cursor
	l.keep(ev)
	if l.file != nil {
		l.append(ev)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Log) append(ev *apiv1.Event) {
	b, err := protojson.Marshal(ev)
	if err != nil {
		return
	}
	n, err := l.file.Write(append(b, '\n'))
	l.written += int64(n)
	if err == nil && l.written > l.rewriteAt {
		err = l.rewrite()
	}
	if err != nil {
		l.logger.Warn("events are kept in memory only", "file", l.path, "error", err)
		l.file.Close()
		l.file = nil
	}
}

// Watch calls send with each event after r.After, in order, until ctx ends;
// without r.Follow it returns after the kept ones.
func (l *Log) Watch(ctx context.Context, r *apiv1.WatchEventsRequest, send func(*apiv1.Event) error) error {
	after := r.GetAfter()
	for {
		l.mu.Lock()
		var batch []*apiv1.Event
		for _, ev := range l.kept {
			if ev.Cursor > after {
				after = ev.Cursor
				if r.GetObject() == "" || r.GetObject() == ev.Object {
					batch = append(batch, ev)
				}
			}
		}
		changed := l.changed
		l.mu.Unlock()
		for _, ev := range batch {
			if err := send(proto.Clone(ev).(*apiv1.Event)); err != nil {
				return err
			}
		}
		if !r.GetFollow() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Close closes the file. Watchers end with their contexts.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
