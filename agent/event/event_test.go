package event

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	apiv1 "github.com/moraine-storage/moraine/agent/api/v1"
)

func collect(t *testing.T, l *Log, r *apiv1.WatchEventsRequest) []*apiv1.Event {
	t.Helper()
	var got []*apiv1.Event
	if err := l.Watch(context.Background(), r, func(e *apiv1.Event) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

// Goal: events and growing cursors survive a restart, a damaged line costs that line only.
func TestSurvivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events", "log")
	l, err := Open(path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	l.Record(apiv1.Severity_INFO, "volume.created", "volume a", "", "size", "1")
	l.Record(apiv1.Severity_ERROR, "drive.failed", "drive b", "EIO")
	first := collect(t, l, &apiv1.WatchEventsRequest{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("{\"cursor\": garbage\n")
	f.Close()
	l, err = Open(path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.Record(apiv1.Severity_INFO, "volume.deleted", "volume a", "")
	got := collect(t, l, &apiv1.WatchEventsRequest{})
	if len(got) != 3 || got[0].Cursor != first[0].Cursor || got[0].Fields["size"] != "1" {
		t.Fatalf("after restart: %v", got)
	}
	for i := 1; i < len(got); i++ {
		if got[i].Cursor <= got[i-1].Cursor {
			t.Errorf("cursor %d after %d", got[i].Cursor, got[i-1].Cursor)
		}
	}
	if only := collect(t, l, &apiv1.WatchEventsRequest{Object: "drive b", After: got[0].Cursor}); len(only) != 1 || only[0].Type != "drive.failed" {
		t.Errorf("filtered: %v", only)
	}
}

// Goal: a follower sees later events in order and ends with its context; memory stays bounded.
func TestFollowAndBound(t *testing.T) {
	l, _ := Open("", hclog.NewNullLogger())
	for range keptEvents + 10 {
		l.Record(apiv1.Severity_INFO, "x", "o", "")
	}
	if n := len(collect(t, l, &apiv1.WatchEventsRequest{})); n > keptEvents {
		t.Errorf("%d events kept", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	last := l.cursor
	got := make(chan *apiv1.Event, 8)
	done := make(chan error)
	go func() {
		done <- l.Watch(ctx, &apiv1.WatchEventsRequest{Follow: true, After: last}, func(e *apiv1.Event) error { got <- e; return nil })
	}()
	l.Record(apiv1.Severity_INFO, "y", "o", "")
	if e := <-got; e.Type != "y" {
		t.Errorf("got %v", e)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("watch ended with %v", err)
	}
}
