package apierr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// Both directions over a real connection are in agent/apiserver; here are the
// errors that no service makes.
func TestTransportErrors(t *testing.T) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tt := range []struct {
		ctx   context.Context
		code  connect.Code
		class error
		maybe bool
	}{
		{context.Background(), connect.CodeUnavailable, errdefs.ErrUnavailable, true},
		{context.Background(), connect.CodeUnknown, errdefs.ErrUnavailable, true},
		{context.Background(), connect.CodeInternal, errdefs.ErrUnavailable, true},
		{context.Background(), connect.CodeCanceled, errdefs.ErrUnavailable, true},
		{gone, connect.CodeCanceled, context.Canceled, true},
		{context.Background(), connect.CodeDeadlineExceeded, context.DeadlineExceeded, true},
		{context.Background(), connect.CodeResourceExhausted, errdefs.ErrInternal, true},
		{context.Background(), connect.CodeInvalidArgument, errdefs.ErrInvalidArgument, false},
		{context.Background(), connect.CodeUnimplemented, errdefs.ErrUnimplemented, false},
	} {
		err := FromWire(tt.ctx, fmt.Errorf("call: %w", connect.NewError(tt.code, errors.New("text"))))
		if !errors.Is(err, tt.class) || errdefs.Indeterminate(err) != tt.maybe || err.Error() != "text" {
			t.Errorf("%v: %v is %v %v, want %v %v", tt.code, err, errors.Is(err, tt.class), errdefs.Indeterminate(err), tt.class, tt.maybe)
		}
	}
	if err := FromWire(context.Background(), io.EOF); err != io.EOF {
		t.Errorf("an error that is none of Connect's turned into %v", err)
	}
	if err := ToWire(nil); err != nil {
		t.Errorf("no error turned into %v", err)
	}
	if err := FromWire(context.Background(), connect.NewError(connect.CodeAborted, nil)); err.Error() == "" {
		t.Error("an error without a text")
	}
}

func TestTextsAreClipped(t *testing.T) {
	for _, in := range []string{"short", strings.Repeat("x", 10000), strings.Repeat("€", 5000), "\xff\xfe", strings.Repeat("\xff", 9000)} {
		out := clip(in)
		if len(out) > maxMessageLen || !utf8.ValidString(out) || out == "" {
			t.Errorf("clip of %d bytes gives %d bytes, valid %v", len(in), len(out), utf8.ValidString(out))
		}
	}
	if clip("short") != "short" {
		t.Error("a short text was changed")
	}
}

func TestNewHasItsClasses(t *testing.T) {
	err := fmt.Errorf("around: %w", New("text", errdefs.ErrAborted, errdefs.ErrIndeterminate))
	if !errors.Is(err, errdefs.ErrAborted) || !errdefs.Indeterminate(err) || err.Error() != "around: text" {
		t.Errorf("%v", err)
	}
	if Code(err) != connect.CodeAborted || !errors.Is(Class(connect.CodeAborted), errdefs.ErrAborted) {
		t.Error("code and class do not match")
	}
}
